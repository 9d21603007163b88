"""The engine on continuous tokens, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.cache_policy import shared_segments
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.exhaustive import order_log_probs
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function

ENDS, L, Z, CLASSES = (1, 3, 6, 10), 10, 2, 7


def log_probs(tokens_LZ, class_id):
    """A token's depends on the class and, through a running sum, on the tokens before, as in a real model."""
    before_LZ = tokens_LZ.cumsum(0) - tokens_LZ
    return -((tokens_LZ - 0.1 * class_id - 0.05 * before_LZ) ** 2).sum(-1)


class Vectors(LikelihoodModel):
    segment_ends = ENDS
    num_classes = CLASSES
    unconditional = None
    flops_per_token = 1
    channels = Z
    any_order = True

    def __init__(self):
        self.scored = 0

    def _state(self, tokens_PLZ, class_id_P, order_PL, at):
        assert tokens_PLZ.shape[1:] == (L, Z) and tokens_PLZ.dtype == torch.float32
        return {"tokens": tokens_PLZ, "class": class_id_P, "order": order_PL, "at": at}

    def begin(self, tokens_BL, sequence_P, class_id_P, order_BL=None):
        order_PL = None if order_BL is None else order_BL[sequence_P]
        return self._state(tokens_BL[sequence_P], class_id_P, order_PL, 0)

    def extend(self, state, stop, *, keep_cache_segments):
        start, end, tokens = (0, *ENDS)[state["at"]], ENDS[stop - 1], state["tokens"]
        if state["order"] is not None:
            tokens = torch.take_along_dim(tokens, state["order"][..., None], 1)
        state["at"] = stop
        self.scored += (end - start) * len(tokens)
        each = [log_probs(x, c)[start:end] for x, c in zip(tokens.double(), state["class"], strict=True)]
        return torch.stack(each).float()

    def select(self, state, keep_Q):
        order = None if state["order"] is None else state["order"][keep_Q]
        return self._state(state["tokens"][keep_Q], state["class"][keep_Q], order, state["at"])

    def fork(self, state, keep_Q, tokens_BL, sequence_Q, stop, order_BL=None):
        order_QL = None if order_BL is None else order_BL[sequence_Q]
        return self._state(tokens_BL[sequence_Q], state["class"][keep_Q], order_QL, stop)

    def sample(self, *args, **options):
        raise NotImplementedError("nothing is sampled here")

    def bytes_per_token(self, *, cached):
        return 1


def request(plan, per_batch=60, orders=1):
    return ScoringRequest(
        candidates=np.arange(CLASSES),
        plan=parse_plan(plan, segments=4, candidates=CLASSES, samples=3, orders=orders),
        score=score_function("log-likelihood"),
        log_prior=np.zeros(CLASSES),
        tokens_per_batch=per_batch,
    )


@pytest.fixture
def tokens():
    """Three images, of which sample 1 has the tokens of its image in the first two segments, sample 2 none."""
    data = np.random.default_rng(0).normal(size=(3, 3, L, Z)).astype(np.float32)
    data[:, 1, : ENDS[1]] = data[:, 0, : ENDS[1]]
    return data


def means(tokens_SLZ, end=L):
    """Scores of all classes over the first tokens, averaged over samples."""
    return np.array(
        [np.mean([log_probs(x.astype(np.float64), c)[:end].sum() for x in tokens_SLZ]) for c in range(CLASSES)]
    )


@pytest.mark.parametrize("per_batch", [1, 25, 1000])
def test_scores_are_those_of_the_definition_and_shared_tokens_are_scored_once(tokens, per_batch):
    model = Vectors()
    results = score_group(model, tokens, request("exhaustive:3", per_batch))
    for image, result in zip(tokens, results, strict=True):
        assert np.abs(result.scores - means(image)).max() < 1e-5
    assert model.scored == 3 * CLASSES * (3 * L - ENDS[1])


def test_stages_keep_the_best_and_extend_them(tokens):
    results = score_group(Vectors(), tokens, request("2:3,4:1:3", 30))
    for image, result in zip(tokens, results, strict=True):
        kept = np.argsort(-means(image[:1], ENDS[1]))[:3]
        final = means(image)
        assert result.order[0] == kept[final[kept].argmax()]
        assert result.scores[kept] == pytest.approx(final[kept], abs=1e-5)


def test_orders_permute_tokens_not_channels(tokens):
    order_GOL = np.stack([np.random.default_rng(g).permuted(np.tile(np.arange(L), (2, 1)), axis=1) for g in range(3)])
    results = score_group(Vectors(), tokens, request("exhaustive@2", orders=2), order_GOL)
    for image, order_OL, result in zip(tokens, order_GOL, results, strict=True):
        assert np.abs(result.scores - means(np.stack([image[0][order] for order in order_OL]))).max() < 1e-5
    found = order_log_probs(Vectors(), torch.from_numpy(tokens[:, 0]), range(CLASSES), 60, order_GOL)
    assert found.shape == (3, CLASSES, 2, L)
    expected = log_probs(tokens[1, 0][order_GOL[1, 1]].astype(np.float64), 3)
    assert np.abs(found[1, 3, 1, order_GOL[1, 1]] - expected).max() < 1e-5


def test_a_token_is_shared_only_where_all_its_channels_are_equal(tokens):
    tokens[0, 1, 2, 1] += 1  # of the second segment
    assert shared_segments(tokens, None, (1, 3))[:, 0].tolist() == [[2, 1, 0], [2, 2, 0], [2, 2, 0]]
    order_GOL = np.tile([2, 0, 1], (3, 1, 1))
    assert shared_segments(tokens[:, :, :3], order_GOL, (1, 3))[:, 0, 1].tolist() == [0, 2, 2]
