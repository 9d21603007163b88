"""Candidates with several captions: the mean of the captions' token log-probabilities, whatever the plan."""

import numpy as np
import pytest
import torch
from caption_toy import CaptionToy, tensors

from avarc_cli.caption_means import MeanOfCaptions
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function
from avarc_cli.text.features import CaptionFeatures

OWNERS = (0, 1, 1, 2, 1, 2)
"""Candidate of each caption: one, three and two captions, not in order."""


@pytest.fixture(scope="module")
def captions():
    """A toy of 16 tokens, bound to six captions and the empty one."""
    made = tensors(width=3, tokens=16, codes=5)
    toy = CaptionToy(made["caption_table"], made["caption_weight"], "")
    generator = torch.Generator().manual_seed(1)

    def features(count):
        sequence = torch.randn(count, 2, 3, generator=generator)
        return CaptionFeatures(captions=("",) * count, sequence_RTD=sequence, length_R=torch.full((count,), 2))

    bound = features(len(OWNERS))
    return toy.with_captions(CaptionFeatures(**{**vars(bound), "empty": features(1)}))


@pytest.fixture(scope="module")
def model(captions):
    return MeanOfCaptions(captions, OWNERS)


@pytest.fixture
def tokens():
    return torch.randint(5, (2, 16), generator=torch.Generator().manual_seed(2))


def score(model, tokens, sequence, class_id):
    state = model.begin(tokens, torch.tensor(sequence), torch.tensor(class_id))
    return model.extend(state, 4, keep_cache_segments=0)


def expected(captions, tokens, sequence, candidate):
    rows = [r for r, owner in enumerate(OWNERS) if owner == candidate]
    return score(captions, tokens, [sequence] * len(rows), rows).double().mean(0)


PAIRS = [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1)]


def test_tokens_are_means_over_the_captions(captions, model, tokens):
    found = score(model, tokens, *map(list, zip(*PAIRS, strict=True)))
    for row, (sequence, candidate) in zip(found, PAIRS, strict=True):
        assert torch.allclose(row.double(), expected(captions, tokens, sequence, candidate), atol=1e-6)
    assert model.num_classes == 3 and model.unconditional == 3
    assert torch.equal(score(model, tokens, [0], [3]), score(captions, tokens, [0], [6])), "the empty caption"


def test_selected_joined_and_forked_pairs_go_on(captions, model, tokens):
    sequence, candidate = map(list, zip(*PAIRS, strict=True))
    state = model.begin(tokens, torch.tensor(sequence), torch.tensor(candidate))
    first = model.extend(state, 2, keep_cache_segments=2)
    keep = torch.tensor([3, 1])
    rest = model.extend(model.select(state, keep), 4, keep_cache_segments=0)
    whole = torch.cat([first[keep], rest], 1)
    for row, pair in zip(whole, [PAIRS[3], PAIRS[1]], strict=True):
        assert torch.allclose(row.double(), expected(captions, tokens, *pair), atol=1e-6)
    other = model.begin(tokens, torch.tensor(sequence), torch.tensor(candidate))
    model.extend(other, 2, keep_cache_segments=2)
    joined = model.join([model.select(other, keep), model.select(other, torch.tensor([0]))])
    for row, pair in zip(model.extend(joined, 4, keep_cache_segments=0), [PAIRS[3], PAIRS[1], PAIRS[0]], strict=True):
        assert torch.allclose(row.double(), expected(captions, tokens, *pair)[8:], atol=1e-6)
    fork = model.fork(state, torch.tensor([2, 0, 2]), tokens.flip(0), torch.tensor([0, 1, 1]), 2)
    found = model.extend(fork, 4, keep_cache_segments=0)
    for row, pair in zip(found, [(0, 2), (1, 0), (1, 2)], strict=True):
        assert torch.allclose(row.double(), expected(captions, tokens.flip(0), *pair)[8:], atol=1e-6)


@pytest.mark.parametrize("plan", ["exhaustive", "1:2,4:1", "2:2,4:1:2"])
@pytest.mark.parametrize("per_batch", [1, 4096])
def test_plans_prune_candidates_with_different_numbers_of_captions(captions, model, tokens, plan, per_batch):
    samples = 2 if plan.endswith(":1:2") else 1
    tokens_GSL = torch.stack([tokens] * samples, 1).numpy()  # the samples share all of their segments
    request = ScoringRequest(
        candidates=np.arange(3),
        plan=parse_plan(plan, segments=4, candidates=3, samples=samples),
        score=score_function("pmi"),
        log_prior=np.zeros(3),
        tokens_per_batch=per_batch,
    )
    for image, scores in enumerate(score_group(model, tokens_GSL, request)):
        best = scores.order[0]
        given = expected(captions, tokens, image, best).sum()
        empty = score(captions, tokens, [image], [6]).double().sum()
        assert scores.scores[best] == pytest.approx(float(given - empty), abs=1e-4)


def test_costs_count_the_captions(captions, model):
    assert model.flops_per_token == 2 and model.most == 3
    assert model.bytes_per_token(cached=True) == 3 * captions.bytes_per_token(cached=True)
    assert model.evaluated(10) == 3 * captions.evaluated(10)


def test_pictures_are_of_captions_that_their_own_generators_draw(captions, model):
    def drawn(model, classes, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return model.sample(torch.tensor(classes), generators=generators)

    one = drawn(model, [0, 1, 2], [1, 2, 3])
    assert torch.equal(one[1:], drawn(model, [1, 2], [2, 3])), "whatever the others are"
    assert torch.equal(one[0], drawn(captions, [0], [1])[0]), "a single caption is not drawn"
    assert len({tuple(row.tolist()) for row in drawn(model, [1] * 8, range(8))}) > 1
