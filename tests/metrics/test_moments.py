"""Statistics in blocks, and the Fréchet distance, against the original evaluator and against scipy's square root."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from conftest import load_golden
from hypothesis import given
from hypothesis import strategies as st

from avarc_cli.metrics.moments import Gaussian, Moments, frechet_distance


def of(features, *cuts):
    moments = Moments(features.shape[1])
    for block in np.split(features, cuts):
        moments.add(block)
    return moments.gaussian()


def published(one, other):
    """The evaluator's formula, as it is written there."""
    root = scipy.linalg.sqrtm(one.covariance @ other.covariance)
    gap = one.mean - other.mean
    return gap @ gap + np.trace(one.covariance) + np.trace(other.covariance) - 2 * np.trace(root.real)


@st.composite
def feature_sets(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    width, count = draw(st.integers(1, 6)), draw(st.integers(2, 40))
    return rng.normal(draw(st.integers(-100, 100)), rng.uniform(0.1, 5, width), (count, width)).astype(np.float32)


def test_distances_and_statistics_are_those_of_the_original_evaluator():
    golden = load_golden("evaluation_tiny")
    arrays, tolerances = golden.arrays, golden.meta["tolerance"]
    real, fake = of(arrays["real"], 100, 101), of(arrays["fake"], 64)
    assert np.abs(real.mean - arrays["mu"]).max() <= tolerances["mu"]
    assert np.abs(real.covariance - arrays["sigma"]).max() <= tolerances["sigma"]
    assert frechet_distance(real, fake) == pytest.approx(arrays["fid"].item(), abs=tolerances["fid"])
    spatial = frechet_distance(of(arrays["real_spatial"]), of(arrays["fake_spatial"]))
    assert spatial == pytest.approx(arrays["sfid"].item(), abs=tolerances["sfid"])


@given(feature_sets(), st.lists(st.integers(0, 40), max_size=3))
def test_blocks_give_what_the_whole_gives(features, cuts):
    found = of(features, *sorted(cuts))
    whole = features.astype(np.float64)
    assert np.allclose(found.mean, whole.mean(0), rtol=0, atol=1e-10)
    assert np.allclose(found.covariance, np.cov(whole, rowvar=False), rtol=1e-9, atol=1e-9)


@given(feature_sets())
def test_a_set_has_no_distance_from_itself_in_any_order(features):
    there = of(features)
    assert frechet_distance(there, there) < 1e-9
    assert frechet_distance(there, of(features[::-1])) < 1e-9


@given(feature_sets(), st.integers(0, 2**32))
def test_the_distance_is_symmetric_and_the_published_formula(features, seed):
    other = of(features[:1] + np.random.default_rng(seed).normal(size=(30, features.shape[1])))
    one = of(features)
    there, back = frechet_distance(one, other), frechet_distance(other, one)
    assert there == pytest.approx(back, rel=1e-9, abs=1e-9)
    if len(features) > features.shape[1] + 1:  # scipy's root of a singular matrix is inaccurate
        assert there == pytest.approx(published(one, other), rel=1e-6, abs=1e-6)


def test_the_distance_of_diagonal_covariances_is_known():
    one = Gaussian(np.array([0.0, 0.0]), np.diag([4.0, 0.0]))  # singular, as with few images
    other = Gaussian(np.array([3.0, 4.0]), np.diag([9.0, 16.0]))
    assert frechet_distance(one, other) == pytest.approx(25 + (2 - 3) ** 2 + 16)


def test_equal_images_have_a_distance_too():
    same = of(np.ones((5, 3)))
    assert frechet_distance(same, of(np.zeros((5, 3)))) == 3
    assert frechet_distance(same, Gaussian(np.ones(3), np.diag([1.0, 4, 9]))) == pytest.approx(14)


def test_one_image_has_no_covariance():
    moments = Moments(2)
    moments.add(np.empty((0, 2)))
    moments.add(np.ones((1, 2)))
    with pytest.raises(ValueError, match="there are 1"):
        moments.gaussian()
