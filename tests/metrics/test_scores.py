"""Inception Score, precision and recall, against the original evaluator and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import load_golden
from hypothesis import given
from hypothesis import strategies as st

from avarc_cli.metrics import scores
from avarc_cli.metrics.scores import inception_score, precision_recall, radii

GOLDEN = load_golden("evaluation_tiny")
ARRAYS, TOLERANCES = GOLDEN.arrays, GOLDEN.meta["tolerance"]


def test_the_score_is_that_of_the_original_evaluator():
    found, _ = inception_score(ARRAYS["fake"], ARRAYS["logit_weights"], GOLDEN.meta["config"]["split"])
    assert found == pytest.approx(ARRAYS["inception_score"].item(), abs=TOLERANCES["inception_score"])


def test_the_last_part_of_the_score_may_be_smaller():
    part = len(ARRAYS["fake"]) - 10
    halves = [inception_score(each, ARRAYS["logit_weights"])[0] for each in np.split(ARRAYS["fake"], [part])]
    assert inception_score(ARRAYS["fake"], ARRAYS["logit_weights"], part)[0] == pytest.approx(sum(halves) / 2)


def test_images_that_come_sorted_by_class_are_noticed():
    weights = np.eye(10, dtype=np.float32)
    sure = 20 * np.repeat(np.eye(10, dtype=np.float32), 20, axis=0)
    mixed = sure[np.random.default_rng(0).permutation(len(sure))]
    (low, apart), (high, close) = (inception_score(each, weights, part=100) for each in (sure, mixed))
    assert low == pytest.approx(5, abs=0.1) and high == pytest.approx(10, abs=0.5)
    assert apart == pytest.approx(np.log(2), abs=0.01) and close < 0.1


def test_precision_recall_and_radii_are_those_of_the_original_evaluator(monkeypatch):
    monkeypatch.setattr(scores, "ROWS", 77)  # several blocks
    precision, recall = precision_recall(ARRAYS["real"], ARRAYS["fake"])
    assert precision == ARRAYS["precision"].item() and recall == ARRAYS["recall"].item()
    found = radii(torch.from_numpy(ARRAYS["real"])).numpy()
    assert np.abs(found - ARRAYS["radii"]).max() <= TOLERANCES["radii"]


@given(st.integers(0, 2**32), st.integers(4, 12), st.integers(4, 12))
def test_precision_and_recall_are_those_of_brute_force(seed, reals, fakes):
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(reals, 3)).astype(np.float32), rng.normal(size=(fakes, 3)).astype(np.float32)

    def share(points, centers):
        def reach(i):
            return sorted(np.linalg.norm(centers[i] - c) for j, c in enumerate(centers) if j != i)[2]

        inside = [any(np.linalg.norm(p - c) <= reach(i) for i, c in enumerate(centers)) for p in points]
        return sum(inside) / len(points)

    assert precision_recall(real, fake) == (pytest.approx(share(fake, real)), pytest.approx(share(real, fake)))


def test_a_set_is_all_inside_itself():
    real = ARRAYS["real"] + 1000  # far from the origin, where squares lose digits
    assert precision_recall(real, real) == (1, 1)


def test_three_images_are_too_few():
    with pytest.raises(ValueError, match="more than 3"):
        precision_recall(ARRAYS["real"][:3], ARRAYS["fake"])
