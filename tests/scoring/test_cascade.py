"""A cascade of two precisions predicts what the exact one predicts, whatever is wrong in the cheap one by its slack."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_model import ENDS, PlantedModel, planted_tokens

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.cascade import Cascade, score_in_two_precisions
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.rounding_noise import RoundingNoise, comparisons, images_needed, measure, quantile, tail
from avarc_cli.scoring.scores import score_function

CLASSES, SAMPLES = 12, 2
PLANS = (
    "exhaustive",
    "1:6,2:3,3:1:2",
    "1:5,2:4,3:2,3:1:2",
    "2:6:2,3:1:2",
    "1:2,3:1",
    "1:<0.6,2:<0.5,3:1",
    "2:4,3:<0.3,3:1:2",
)


def request(plan: str, score: str = "log-likelihood", per_batch: int = 4000) -> ScoringRequest:
    return ScoringRequest(
        candidates=np.arange(CLASSES),
        plan=parse_plan(plan, segments=3, candidates=CLASSES, samples=SAMPLES),
        score=score_function(score),
        log_prior=np.linspace(0, 0.2, CLASSES),
        tokens_per_batch=per_batch,
    )


def planted(images: int, seed: int, error) -> tuple[PlantedModel, PlantedModel]:
    """The exact model, and a cheap one that is wrong by error(rng, shape), summed over segments, at every end."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(images * SAMPLES, CLASSES + 1, len(ENDS))) - 5
    tied = rng.random((images * SAMPLES, CLASSES)) < 0.3  # classes that are nearly as good as the one before
    for c in range(1, CLASSES):
        table[tied[:, c], c] = table[tied[:, c], c - 1] + 0.01 * rng.normal(size=(int(tied[:, c].sum()), len(ENDS)))
    wrong = error(rng, table.shape)
    return PlantedModel(table), PlantedModel(table + np.diff(wrong, axis=-1, prepend=0))


def predictions(scores) -> list[int]:
    return [int(each.order[0]) for each in scores]


def both(plan: str, images: int, seed: int, error, slack: float, score: str = "log-likelihood"):
    exact, cheap = planted(images, seed, error)
    asked, tokens = request(plan, score), planted_tokens(images, SAMPLES)
    cascade = Cascade("bf16", (slack,) * len(asked.plan.stages))
    expected = score_group(exact, tokens, asked)
    exact.scored = 0
    return expected, score_in_two_precisions(cheap, lambda: exact, tokens, asked, cascade), exact


@settings(max_examples=25)
@given(
    st.sampled_from(PLANS),
    st.integers(0, 10**6),
    st.sampled_from([0.02, 0.1, 0.4]),
    st.sampled_from(["log-likelihood", "pmi"]),
)
def test_no_errors_within_the_slack_change_a_prediction(plan, seed, slack, score):
    """The errors are the worst there can be: every score is off by half the slack, up or down."""

    def error(rng, shape):
        return 0.499 * slack * rng.choice([-1.0, 1.0], size=shape)

    expected, found, _ = both(plan, 60, seed, error, slack, score)
    assert predictions(found) == predictions(expected)
    for one, other in zip(found, expected, strict=True):
        if one.settled.survivors:  # then the survivors of all stages are those of the exact run
            ours = [set(stage.survivors.tolist()) for stage in one.stages]
            theirs = [set(stage.survivors.tolist()) for stage in other.stages]
            assert ours[: len(theirs) - 1] == theirs[:-1]
        assert len(one.stages[-1].survivors) == 1 and np.isclose(one.posterior.sum(), 1)


@settings(max_examples=25)
@given(
    st.sampled_from(["exhaustive", "1:6,2:3,3:1", "1:5,2:4,3:1", "2:1", "1:<0.6,2:<0.5,3:1", "1:4,2:<0.3,3:1"]),
    st.integers(0, 10**6),
    st.sampled_from([0.02, 0.4]),
)
def test_only_errors_that_are_counted_matter(plan, seed, slack):
    """Candidates that do not take part in a stage in the exact precision are wrong by any amount. Where ranks count,
    so are those that do: upwards if they are kept, and else downwards, or upwards by less than the slack."""
    exact, _ = planted(60, seed, lambda rng, shape: np.zeros(shape))
    asked, tokens = request(plan), planted_tokens(60, SAMPLES)
    expected = score_group(exact, tokens, asked)
    rng, table = np.random.default_rng(seed), exact.table_BNK.double().numpy()
    wrong = rng.normal(size=table.shape)
    for g, scores in enumerate(expected):
        for stage, record in zip(asked.plan.stages, scores.stages, strict=False):
            kept = np.isin(record.candidates, record.survivors)
            if np.isinf(stage.margin):
                any_size = rng.exponential(size=kept.shape) * rng.integers(2)
                error = np.where(kept, any_size, np.where(rng.random(kept.shape) < 0.5, 0.99 * slack, -any_size))
            else:
                error = 0.49 * slack * rng.choice([-1.0, 1.0], size=kept.shape)
            wrong[g * SAMPLES, record.candidates, stage.segments - 1] = error
    cheap = PlantedModel(table + np.diff(wrong, axis=-1, prepend=0))
    cascade = Cascade("bf16", (slack,) * len(asked.plan.stages))
    found = score_in_two_precisions(cheap, lambda: exact, tokens, asked, cascade)
    assert predictions(found) == predictions(expected)


@pytest.mark.parametrize(
    ("plan", "classes", "count"),
    [
        ("6:10,10:3,10:1:3", 100, 10 * 90 + 3 * 7 + 1 * 2),
        ("exhaustive", 100, 99),
        ("exhaustive", 1, 1),
        ("5:12,10:1", 12, 11),  # the first stage drops nothing
        ("5:<2.5,10:1", 12, 12 * 11 + 11),
        ("0~:1,10:1", 12, 1),  # a first cut leaves two
    ],
)
def test_errors_that_matter_are_counted(plan, classes, count):
    parsed = parse_plan(plan, segments=10, candidates=classes, samples=3, can_cut=True)
    assert comparisons(parsed, classes) == count


@pytest.mark.parametrize("plan", ["exhaustive", "1:6,2:3,3:1:2"])
def test_thousands_of_images_with_noise_of_the_measured_size(plan):
    noise = 0.02
    of_differences = RoundingNoise((2**0.5 * noise,) * 3, {}, images=10, classes=12)
    asked, images = request(plan), 3000
    slacks = of_differences.slacks(asked.plan, CLASSES, ENDS)
    exact, cheap = planted(images, 7, lambda rng, shape: noise * rng.normal(size=shape))
    tokens = planted_tokens(images, SAMPLES)
    expected = score_group(exact, tokens, asked)
    exact.scored = 0
    found = score_in_two_precisions(cheap, lambda: exact, tokens, asked, Cascade("bf16", slacks))
    assert predictions(found) == predictions(expected)
    alone = score_group(cheap, tokens, asked)
    assert sum(a != b for a, b in zip(predictions(alone), predictions(expected), strict=True)) > 20, "near-ties exist"
    in_exact = sum(each.settled.precision == "fp32" for each in found)
    assert 0 < in_exact < images
    assert sum(each.settled.tokens for each in found) == exact.scored < 0.6 * cheap.scored


def test_where_the_cheap_precision_is_sure_the_exact_model_is_never_loaded():
    exact, cheap = planted(20, 3, lambda rng, shape: np.zeros(shape))

    def load() -> LikelihoodModel:
        raise AssertionError("it is not needed")

    asked = request("1:6,2:3,3:1:2")
    found = score_in_two_precisions(cheap, load, planted_tokens(20, SAMPLES), asked, Cascade("int8", (1e-9,) * 3))
    assert {each.settled.precision for each in found} == {"int8"}
    assert {stage.precision for each in found for stage in each.stages} == {"int8"}
    assert predictions(found) == predictions(score_group(exact, planted_tokens(20, SAMPLES), asked))


def test_an_image_that_was_decided_in_the_exact_precision_says_so():
    expected, found, _ = both("1:6,3:1", 200, 5, lambda rng, shape: 0.05 * rng.normal(size=shape), 0.5)
    settled = [each for each in found if each.settled.precision == "fp32"]
    assert settled
    for each in settled:
        assert [stage.precision for stage in each.stages] == ["bf16", "bf16", "fp32"]
        last = each.stages[-1]
        ahead = np.sort(last.scores)[::-1]
        assert each.order[0] == last.candidates[np.argmax(last.scores)]
        assert len(ahead) == 1 or each.margin == pytest.approx(ahead[0] - ahead[1])
        assert each.tokens_scored > each.settled.tokens > 0
    by_image = {g: each for g, each in enumerate(found) if each.settled.precision == "fp32"}
    for g, each in by_image.items():  # exact scores, to the last digit that a sum in other batches keeps
        theirs = expected[g]
        assert each.scores[each.order[0]] == pytest.approx(theirs.scores[theirs.order[0]], abs=1e-5)


def test_the_noise_that_is_measured_is_the_noise_that_was_planted():
    exact, cheap = planted(300, 1, lambda rng, shape: 0.03 * rng.normal(size=shape))
    noise = measure(cheap, exact, planted_tokens(300, SAMPLES), request("exhaustive"))
    assert noise.images == 300 and noise.classes == CLASSES
    assert np.allclose(noise.segments, 0.03 * 2**0.5, rtol=0.1)
    assert RoundingNoise.from_dict(noise.to_dict()) == noise


def test_few_tokens_count_with_their_share_of_the_noise_of_all():
    noise = RoundingNoise((0.0, 0.5, 1.0), {1: 2.0}, images=4, classes=16)
    stages = parse_plan("1:6,2:3,3:1", segments=3, candidates=CLASSES, samples=1).stages
    assert [noise.of(stage, ENDS) for stage in stages] == pytest.approx([(1 / 6) ** 0.5, 0.5**0.5, 1.0])
    assert noise.of(replace(stages[0], estimated=True), ENDS) == 2.0
    assert noise.of(replace(stages[0], segments=0, estimated=True), ENDS) == 0.0, "a first cut is no pass of the model"


@pytest.mark.parametrize(
    ("freedom", "t", "probability"),
    [
        (10, 2.0, 0.03669401738537014),
        (10, 1.812461, 0.05),
        (30, 3.0, 0.002694982),
        (1, 1.0, 0.25),
        (2, 4.0, 0.02859547),
    ],
)
def test_tails_of_students_distribution(freedom, t, probability):
    assert tail(t, freedom) == pytest.approx(probability, rel=1e-5)
    assert quantile(probability, freedom) == pytest.approx(t, rel=1e-5)


def test_small_probabilities_are_not_lost_in_rounding():
    assert tail(quantile(1e-18, 30), 30) == pytest.approx(1e-18, rel=1e-6)


@pytest.mark.parametrize(
    ("candidates", "there", "images"), [(100, 50, 4), (10, 50, 7), (2, 500, 32), (2, 5, 5), (1, 9, 9)]
)
def test_more_images_are_measured_where_there_are_few_classes(candidates, there, images):
    assert images_needed(candidates, there) == images


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"segments": [], "estimates": {}, "images": 4, "classes": 4},
        {"segments": ["a"], "estimates": {}, "images": 4, "classes": 4},
        {"segments": [float("nan")], "estimates": {}, "images": 4, "classes": 4},
        {"segments": [-1.0], "estimates": {}, "images": 4, "classes": 4},
        {"segments": [1.0], "estimates": {"a": 1.0}, "images": 4, "classes": 4},
        {"segments": [1.0], "estimates": {}, "images": 0, "classes": 4},
        {"segments": 1.0, "estimates": {}, "images": 1, "classes": 4},
    ],
)
def test_a_damaged_measurement_is_noticed(values):
    with pytest.raises((KeyError, TypeError, ValueError)):
        RoundingNoise.from_dict(values)
