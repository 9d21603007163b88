"""Maps add up to what they claim, and are the reference's formula on the golden models."""

import numpy as np
import pytest
import torch
from conftest import load_golden
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from avarc_cli.errors import UsageError
from avarc_cli.explain.maps import Weighting, combine, parse_scales, split_grids, step_sums
from avarc_cli.layout import TokenLayout

EVERY = ("var_tiny", "var_tiny_shared_aln", "var_tiny_no_qk_norm", "var_d16")
D16 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
multi_scale = TokenLayout.multi_scale


def reference(values_L, patch_nums):
    """The paper's picture, written out with torch: nearest upsampling, times (p_k / P)^2."""
    side, start, total = patch_nums[-1], 0, torch.zeros(1, 1, patch_nums[-1], patch_nums[-1], dtype=torch.float64)
    for p in patch_nums:
        grid = torch.from_numpy(np.asarray(values_L[start : start + p * p], dtype=np.float64)).view(1, 1, p, p)
        total += F.interpolate(grid, size=(side, side), mode="nearest") * (p / side) ** 2
        start += p * p
    return total[0, 0].numpy()


@pytest.fixture(params=EVERY)
def contrasts(request):
    """Of the reference's token log-probabilities: (patch_nums, [(values, difference of its log-likelihoods)])."""
    golden = load_golden(request.param)
    token, total = golden.arrays["token_log_prob"].astype(np.float64), golden.arrays["log_likelihood"]
    pairs = [
        (token[b, i] - token[b, j], total[b, i] - total[b, j])
        for b in range(len(token))
        for i in range(token.shape[1])
        for j in range(token.shape[1])
    ]
    return golden.patch_nums, pairs


def test_a_map_sums_to_the_difference_of_the_references_log_likelihoods(contrasts):
    patch_nums, pairs = contrasts
    for values, difference in pairs:
        assert combine(values, multi_scale(patch_nums), Weighting()).sum() == pytest.approx(values.sum(), abs=1e-9)
        assert combine(values, multi_scale(patch_nums), Weighting()).sum() == pytest.approx(difference, abs=1e-3)


def test_nearest_upsampling_is_the_papers_formula(contrasts):
    patch_nums, pairs = contrasts
    for values, _ in pairs:
        ours = combine(values, multi_scale(patch_nums), Weighting(upsample="nearest"))
        np.testing.assert_allclose(ours, reference(values, patch_nums), rtol=0, atol=1e-12)


def test_where_sides_divide_the_finest_both_ways_of_upsampling_are_one():
    values = np.random.default_rng(0).normal(size=1 + 4 + 16 + 64)
    maps = [combine(values, multi_scale((1, 2, 4, 8)), Weighting(upsample=how)) for how in ("area", "nearest")]
    np.testing.assert_allclose(*maps, atol=1e-12)


@given(st.lists(st.integers(1, 17), min_size=1, max_size=5, unique=True).map(lambda p: tuple(sorted(p))), st.data())
def test_what_the_sum_of_a_map_is(patch_nums, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = rng.normal(0, 5, sum(p * p for p in patch_nums))
    first = data.draw(st.integers(1, len(patch_nums)))
    last = data.draw(st.integers(first, len(patch_nums)))
    layout = multi_scale(patch_nums)
    part = np.array([grid.sum() for grid in split_grids(values, layout)])[first - 1 : last]
    sides = np.array(patch_nums[first - 1 : last])
    paper = combine(values, layout, Weighting(scales=(first, last)))
    uniform = combine(values, layout, Weighting(weights="uniform", scales=(first, last)))
    assert paper.sum() == pytest.approx(part.sum(), abs=1e-9)
    assert uniform.sum() == pytest.approx((part * (patch_nums[-1] / sides) ** 2).sum(), abs=1e-8)


@pytest.mark.parametrize(("scale", "row", "column"), [(1, 0, 1), (2, 2, 0), (8, 12, 12), (9, 15, 0)])
def test_a_token_is_painted_on_its_own_part_of_the_image_only(scale, row, column):
    p, position = D16[scale], sum(q * q for q in D16[:scale]) + row * D16[scale] + column
    values = np.zeros(sum(q * q for q in D16))
    values[position] = 2.5
    cells = combine(values, multi_scale(D16), Weighting())
    rows, columns = np.nonzero(cells)
    for cell, token in ((rows, row), (columns, column)):
        assert cell.min() == token * 16 // p
        assert cell.max() == -(-(token + 1) * 16 // p) - 1
    assert cells.sum() == pytest.approx(2.5)


def test_scales_come_apart_in_raster_order():
    grids = split_grids(np.arange(14), multi_scale((1, 2, 3)))
    assert [g.tolist() for g in grids] == [[[0]], [[1, 2], [3, 4]], [[5, 6, 7], [8, 9, 10], [11, 12, 13]]]


@pytest.mark.parametrize(("text", "scales"), [(None, None), ("4-10", (4, 10)), (" 2 - 3 ", (2, 3)), ("5", (5, 5))])
def test_scales_are_written_as_a_range(text, scales):
    assert parse_scales(text) == scales


@pytest.mark.parametrize("text", ["", "a", "4-", "-3", "1,2", "1-2-3"])
def test_other_texts_are_no_scales(text):
    with pytest.raises(UsageError, match="--scales"):
        parse_scales(text)


@pytest.mark.parametrize("scales", [(0, 2), (3, 2), (1, 11), (11, 11)])
def test_scales_that_the_model_does_not_have_are_refused(scales):
    with pytest.raises(UsageError, match="scales 1 to 10"):
        Weighting(scales=scales).of_grids(multi_scale(D16))


@pytest.mark.parametrize("wrong", [{"weights": "equal"}, {"upsample": "bicubic"}])
def test_other_weights_and_upsamplings_are_refused(wrong):
    with pytest.raises(UsageError, match="there are"):
        Weighting(**wrong)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 2**32))
def test_maps_of_grids_that_are_not_square_sum_to_the_values(grids, seed):
    layout = TokenLayout(tuple(grids), sum(rows * columns for rows, columns in grids))
    values = np.random.default_rng(seed).normal(0, 5, layout.num_tokens)
    cells = combine(values, layout, Weighting())
    assert cells.shape == grids[-1]
    assert cells.sum() == pytest.approx(values.sum(), abs=1e-9)
    finest = np.prod(grids[-1])
    expected = sum(grid.sum() * finest / grid.size for grid in split_grids(values, layout))
    assert combine(values, layout, Weighting(weights="uniform")).sum() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("weighting", [Weighting(), Weighting(weights="uniform"), Weighting(upsample="nearest")])
def test_the_map_of_a_single_grid_is_its_values(weighting):
    values = np.arange(24.0)
    assert np.array_equal(combine(values, TokenLayout.raster(4, 6), weighting), values.reshape(4, 6))


def test_a_token_of_a_wide_grid_covers_its_part_of_the_image():
    """Three tokens side by side over two rows of six cells: each covers two columns of both rows."""
    layout = TokenLayout(((1, 3), (2, 6)), 15)
    cells = combine(np.array([0, 4.0, 0, *[0.0] * 12]), layout, Weighting())
    np.testing.assert_allclose(cells, np.repeat([[0, 0, 1.0, 1.0, 0, 0]], 2, axis=0))


def test_steps_are_grids_or_the_rows_of_a_single_grid():
    scales = step_sums(np.ones(14), multi_scale((1, 2, 3)))
    assert scales.labels == ("1", "2", "3") and scales.sums.tolist() == [1, 4, 9]
    rows = step_sums(np.arange(6), TokenLayout.raster(2, 3))
    assert rows.labels == ("1", "2") and rows.sums.tolist() == [3, 12]


def test_tokens_without_a_grid_have_no_maps():
    with pytest.raises(UsageError, match="there are no maps") as caught:
        combine(np.ones(32), TokenLayout.sequence(32), Weighting())
    assert "32 tokens" in caught.value.why and "avarc export --per-token" in caught.value.fix
