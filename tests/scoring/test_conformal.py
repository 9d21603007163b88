"""Margins with a guarantee: the arithmetic of the bound, the guarantee itself over many draws, and what it costs."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avarc_cli.errors import UsageError
from avarc_cli.scoring import conformal
from avarc_cli.scoring.calibration import expected_calibration_error, fit_temperature, negative_log_likelihood
from avarc_cli.scoring.conformal import FIRST_CUT, Point, ScoreTable, lower_bound, needed, rank_of_level, simulate, tune

ENDS = (1, 4, 10, 20)


def table(images, *, candidates=6, samples=1, seed=0, noise=1.0):
    """Scores like a generator's: the right class gains a little with every token, all classes gain at random."""
    rng = np.random.default_rng(seed)
    new = np.diff((0, *ENDS))
    right = rng.integers(0, candidates, images)
    clean = rng.normal(size=(images, candidates, 1, 4)) * np.sqrt(new) * noise
    clean[np.arange(images), right] += 0.4 * new
    sums = clean + (np.arange(samples) > 0)[:, None] * rng.normal(size=(images, candidates, samples, 4)) * 0.3
    return ScoreTable.of(sums[:, :, None], np.zeros(candidates), ENDS), right


def winners(scores):
    return scores.at[scores.end].argmax(1)


@pytest.mark.parametrize(
    ("agreement", "images"), [("0.995", 199), ("0.99", 99), ("0.9", 9), ("0.999", 999), ("0.5", 1)]
)
def test_a_guarantee_needs_a_number_of_images_and_one_fewer_is_refused(agreement, images):
    asked = Fraction(agreement)
    assert needed(asked) == images
    assert rank_of_level(asked, images) <= images
    with pytest.raises(UsageError, match="too few") as refused:
        tune(table(images - 1)[0], asked, "fp32") if images > 1 else rank_of_level(asked, 0)
    assert str(images) in str(refused.value)


@given(st.integers(1, 999), st.integers(1, 3000))
def test_the_level_is_the_smallest_rank_that_gives_the_guarantee(permille, images):
    asked = Fraction(permille, 1000)
    if images < needed(asked):
        assert math.ceil((images + 1) * asked) > images
    else:
        rank = rank_of_level(asked, images)
        assert Fraction(rank, images + 1) >= asked > Fraction(rank - 1, images + 1)


@pytest.mark.parametrize("agreement", [0, 1, Fraction(3, 2), -1])
def test_an_agreement_outside_0_and_1_is_refused(agreement):
    with pytest.raises(UsageError, match="between 0 and 1"):
        rank_of_level(Fraction(agreement), 1000)


def test_the_bound_for_one_calibration_is_the_beta_quantile():
    assert lower_bound(199, 199) == pytest.approx(0.05 ** (1 / 199))  # Beta(199, 1)
    rng = np.random.default_rng(0)
    for images, rank in ((100, 95), (1000, 996)):
        assert lower_bound(images, rank) == pytest.approx(
            np.quantile(rng.beta(rank, images + 1 - rank, 400_000), 0.05), abs=1e-3
        )


@pytest.mark.parametrize(("samples", "images", "draws"), [(1, 40, 300), (1, 120, 50), (2, 120, 30)])
def test_the_guarantee_holds_over_many_calibrations(samples, images, draws):
    """Many calibrations, each tried on 100 new images: at least the guaranteed fraction agrees.

    Chance may lower it by four standard deviations of the mean over calibrations. Each calibration is one observation,
    since its 100 images have the same margins.
    """
    asked = Fraction(9, 10)
    agreed = []
    for seed in range(draws):
        scores, _ = table(images + 100, samples=samples, seed=seed)
        plan = tune(scores.rows(np.arange(images)), asked, "fp32", seed=seed).plan
        new = scores.rows(np.arange(images, images + 100))
        agreed.append((simulate(plan, new).winner_n == winners(new)).mean())
    doubt = 4 * np.std(agreed) / math.sqrt(draws)
    assert np.mean(agreed) >= float(asked) - doubt
    assert np.mean(agreed) < 0.99, "margins that never drop the winner prove nothing"


def test_images_of_another_kind_have_no_guarantee():
    """The test above can fail: calibrated on easy images, the margins lose the winners of hard ones."""
    easy, hard = table(200, noise=0.3)[0], table(400, noise=2.0, seed=1)[0]
    outcome = simulate(tune(easy, Fraction(9, 10), "fp32").plan, hard)
    assert (outcome.winner_n == winners(hard)).mean() < 0.8


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(20, 90), st.sampled_from([1, 3]), st.sampled_from(["0.8", "0.9", "0.95"]))
def test_on_its_own_images_a_plan_keeps_as_many_winners_as_its_rank_says(seed, images, samples, agreement):
    scores, _ = table(images, samples=samples, seed=seed)
    tuning = tune(scores, Fraction(agreement), "fp32", seed=seed)
    assert tuning.level_images + tuning.scale_images == images
    assert tuning.level_images >= needed(Fraction(agreement))
    outcome = simulate(tuning.plan, scores)
    lost = (outcome.winner_n != winners(scores)).sum()
    assert lost <= tuning.level_images - tuning.rank + tuning.scale_images
    assert (outcome.tokens_n <= scores.exhaustive_tokens).all()
    assert np.allclose([s.expected for s in tuning.plan.stages[:-1]], outcome.survivors_J[:-1])
    assert (tuning.plan.stages[-1].segments, tuning.plan.stages[-1].keep) == (4, 1)
    assert tuning.plan.samples == samples


def test_the_scales_are_fitted_to_images_that_the_level_does_not_use():
    """Other scores of the level's images leave the schedule as it was."""
    scores, _ = table(200, seed=3)
    order = np.random.default_rng(0).permutation(200)
    level_rows = order[50:]
    other = ScoreTable({point: at.copy() for point, at in scores.at.items()}, ENDS, 1)
    for point in other.at:
        other.at[point][level_rows] += table(200, seed=4)[0].at[point][level_rows]
    a, b = (tune(t, Fraction(9, 10), "fp32").plan.stages for t in (scores, other))
    assert [s.segments for s in a] == [s.segments for s in b]
    ratios = [[s.margin / stages[0].margin for s in stages[:-1]] for stages in (a, b)]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-3)


def test_coarse_precisions_get_wider_margins():
    scores, _ = table(60)
    fine, coarse = (tune(scores, Fraction(9, 10), p).plan.stages for p in ("fp32", "bf16"))
    assert all(a.margin < b.margin for a, b in zip(fine[:-1], coarse[:-1], strict=True))


def test_a_single_class_is_nothing_to_tune():
    with pytest.raises(UsageError, match="one class"):
        tune(table(20, candidates=1)[0], Fraction(9, 10), "fp32")


def test_stages_that_save_nothing_are_left_out():
    """Only the last segment has information: no earlier stage can drop a candidate safely."""
    sums = np.random.default_rng(0).normal(size=(400, 5, 1, 4)) * np.array([1e-9, 1e-9, 1e-9, 1.0])
    schedule = conformal.fit_schedule(ScoreTable.of(sums[:, :, None], np.zeros(5), ENDS))
    assert len(schedule.points) == 1


def test_a_prior_counts():
    sums = np.zeros((30, 3, 1, 4))
    scores = ScoreTable.of(sums[:, :, None], np.log([0.1, 0.8, 0.1]), ENDS)
    assert (winners(scores) == 1).all()


def test_a_prior_counts_once_beside_a_first_cut():
    prior, cut = np.log([0.1, 0.8, 0.1]), np.array([[4.0, 0.0, 0.0]])
    scores = ScoreTable.of(np.zeros((1, 3, 1, 1, 4)), prior, ENDS).with_first_cut(cut, prior)
    weighted = scores.rows(np.array([0])).along([FIRST_CUT, Point(2, 1, 1, cut_weight=0.5)])
    assert np.allclose(weighted, [cut + prior, 0.5 * cut + prior])


def test_without_a_first_cut_no_stage_has_a_weight_of_it():
    scores = ScoreTable.of(np.zeros((1, 3, 1, 1, 4)), np.zeros(3), ENDS).with_first_cut(np.zeros((1, 3)))
    path = next(path for path in scores.paths() if path[0] == FIRST_CUT and path[1].cut_weight)
    schedule = conformal.MarginSchedule(path, np.ones(len(path) - 1))
    assert schedule.without(1).points[0] == FIRST_CUT and schedule.without(1).points[1].cut_weight
    assert not any(point.cut_weight for point in schedule.without(0).points)


@given(st.floats(0.4, 20.0))
@settings(max_examples=6)
def test_the_temperature_that_made_the_labels_is_found(heat):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 4000, 5)) * 2
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(1, keepdims=True)
    label = (rng.random((4000, 1)) > p.cumsum(1)).sum(1)
    scores = logits * heat
    fitted = fit_temperature(scores, label)
    assert fitted == pytest.approx(heat, rel=0.1)
    assert negative_log_likelihood(scores, label, fitted) <= negative_log_likelihood(scores, label, 1.0) + 1e-6


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert expected_calibration_error(np.array([0.9, 0.9, 0.2]), np.array([True, False, False])) == pytest.approx(1 / 3)
