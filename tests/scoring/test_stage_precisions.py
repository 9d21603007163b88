"""Plans whose stages name a precision: what the engine scores with which model, and that numbers are never mixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_model import ENDS, PlantedModel, planted_tokens

from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function

CLASSES, IMAGES, SAMPLES = 7, 4, 2


def models(seed):
    rng = np.random.default_rng(seed)
    return {
        name: PlantedModel(rng.normal(size=(IMAGES * SAMPLES, CLASSES + 1, 3)) - 5) for name in ("", "bf16", "int8")
    }


def request(plan, score="log-likelihood", per_batch=4000):
    return ScoringRequest(
        candidates=np.arange(CLASSES),
        plan=parse_plan(plan, segments=3, candidates=CLASSES, samples=SAMPLES),
        score=score_function(score),
        log_prior=np.zeros(CLASSES),
        tokens_per_batch=per_batch,
    )


def by_hand(of, image, plan, score):
    """The definition: each stage by the sums of its own model alone."""
    left, stages = list(range(CLASSES)), []
    for stage in plan.stages:
        if len(left) == 1:
            break
        rows = [image * SAMPLES + s for s in range(stage.samples)]
        table = of[stage.precision or ""].table_BNK[rows, :, : stage.segments].double().sum(-1).mean(0).numpy()
        scores = table[:-1] - (table[-1] if score == "pmi" else 0)
        best = max(scores[c] for c in left)
        ranked = sorted(left, key=lambda c: (-scores[c], c))[: stage.keep]
        left = sorted(c for c in ranked if scores[c] >= best - stage.margin)
        stages.append((left, {c: scores[c] for c in range(CLASSES)}))
    return stages


@settings(max_examples=40)
@given(
    st.sampled_from(
        [
            *("1:4/bf16,2:2/bf16,3:1:2", "2:5/bf16,3:3,3:1:2/int8", "1:5:2/bf16,3:1", "3:1/int8", "1:3,2:2/bf16,3:1"),
            *("1:<1/bf16,2:<1/bf16,3:1:2", "2:4/bf16,1:2/int8,3:1/bf16"),
        ]
    ),
    st.integers(0, 10**6),
    st.sampled_from(["log-likelihood", "pmi"]),
    st.integers(6, 200),
)
def test_every_stage_ranks_by_its_own_models_numbers(plan, seed, score, per_batch):
    of, asked = models(seed), request(plan, score, per_batch)
    scored = score_group(of[""], planted_tokens(IMAGES, SAMPLES), asked, in_precision=of.__getitem__)
    for image, scores in enumerate(scored):
        expected = by_hand(of, image, asked.plan, score)
        assert [stage.survivors.tolist() for stage in scores.stages] == [left for left, _ in expected]
        for stage, wanted, (_, numbers) in zip(scores.stages, asked.plan.stages, expected, strict=False):
            assert stage.precision == wanted.precision
            assert stage.scores == pytest.approx([numbers[c] for c in stage.candidates.tolist()])
        assert scores.order[0] == expected[-1][0][0]
    assert sum(each.tokens_scored for each in scored) == sum(model.scored for model in of.values())


def test_the_tokens_that_are_scored_are_those_of_the_estimate():
    of, asked = models(0), request("1:4/bf16,2:2/bf16,3:1:2")
    scored = score_group(of[""], planted_tokens(IMAGES, SAMPLES), asked, in_precision=of.__getitem__)
    tokens = CLASSES * 1 + 4 * 2 + 2 * 2 * 6
    assert asked.plan.tokens(CLASSES, ENDS) == tokens
    assert {each.tokens_scored for each in scored} == {tokens}
    assert of["bf16"].scored == IMAGES * (CLASSES + 8) and of[""].scored == IMAGES * 24 and of["int8"].scored == 0


def test_a_model_is_loaded_only_for_a_stage_that_images_reach():
    def load(precision):
        raise AssertionError("every image is decided before")

    table = np.zeros((IMAGES * SAMPLES, CLASSES + 1, 3))
    table[:, 0] = 9
    scored = score_group(
        PlantedModel(table), planted_tokens(IMAGES, SAMPLES), request("1:<1,3:1/bf16"), in_precision=load
    )
    assert [each.order[0] for each in scored] == [0] * IMAGES
