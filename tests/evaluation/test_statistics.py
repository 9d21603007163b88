"""The bootstrap interval and McNemar's test, against values computed by hand and by resampling images one by one."""

import numpy as np
import pytest

from avarc_cli.evaluation.statistics import MOST_EXACT, Pairs, bootstrap_difference, mcnemar


def pairs(both, only_first, only_second, neither):
    return Pairs(both=both, only_first=only_first, only_second=only_second, neither=neither)


def test_pairs_are_counted():
    first = np.array([True, True, False, False, True])
    second = np.array([True, False, True, False, True])
    found = Pairs.of(first, second)
    assert found == pairs(2, 1, 1, 1)
    assert (found.images, found.difference) == (5, 0.0)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (0, 1, 1.0),  # 2 * 1 / 2
        (0, 6, 0.03125),  # 2 / 64
        (6, 0, 0.03125),
        (2, 8, 0.109375),  # 2 * (1 + 10 + 45) / 1024
        (11, 1, 0.00634765625),  # 2 * (1 + 12) / 4096
    ],
)
def test_the_exact_test_is_the_two_sided_binomial(first, second, p):
    found = mcnemar(pairs(50, first, second, 7))
    assert (found.p, found.test) == (p, "exact binomial")


def test_with_many_images_the_test_is_chi_squared():
    """The textbook case: (|b - c| - 1)^2 / (b + c) = 3.8414588 is the 95 % quantile with one degree of freedom."""
    n = MOST_EXACT + 500
    apart = 1 + (3.841458820694124 * n) ** 0.5
    first = round((n - apart) / 2)
    found = mcnemar(pairs(0, first, n - first, 0))
    assert found.test == "chi-squared with continuity correction"
    assert found.p == pytest.approx(0.05, abs=0.004)  # whole images


def test_both_tests_agree_where_one_takes_over():
    for difference in (0, 10, 60, 100):
        first = (MOST_EXACT - difference) // 2
        exact = mcnemar(pairs(0, first, MOST_EXACT - first, 0)).p
        beyond = mcnemar(pairs(0, first, MOST_EXACT - first + 1, 0)).p
        assert beyond == pytest.approx(exact, abs=0.03)


def test_the_interval_is_the_same_for_the_same_seed():
    counts = pairs(60, 12, 4, 24)
    assert bootstrap_difference(counts, seed=3) == bootstrap_difference(counts, seed=3)
    low, high = bootstrap_difference(counts, seed=3)
    assert low < counts.difference < high


@pytest.mark.parametrize(("counts", "value"), [((9, 0, 0, 3), 0.0), ((0, 5, 0, 0), -1.0), ((0, 0, 1, 0), 1.0)])
def test_where_all_images_are_alike_there_is_no_spread(counts, value):
    assert bootstrap_difference(pairs(*counts), seed=0) == (value, value)


def test_the_interval_is_that_of_resampled_images():
    """Images drawn one by one, with their pairs, give the same interval."""
    difference = np.array([-1] * 12 + [1] * 30 + [0] * 158)
    draws = np.random.default_rng(1).integers(0, 200, (20_000, 200))
    expected = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
    assert bootstrap_difference(pairs(100, 12, 30, 58), seed=0) == pytest.approx(expected, abs=0.006)
