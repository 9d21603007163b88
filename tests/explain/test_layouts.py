"""Explanations of models whose tokens lie on one grid, on grids that are not square, or on none."""

import re

import numpy as np
import pytest
from PIL import Image

from avarc_cli.errors import UsageError
from avarc_cli.explain.explanation import Explanation
from avarc_cli.explain.gallery import card
from avarc_cli.explain.maps import Weighting
from avarc_cli.explain.write import write_explanations
from avarc_cli.layout import TokenLayout

RASTER, WIDE, SEQUENCE = TokenLayout.raster(16, 16), TokenLayout(((1, 3), (4, 12)), 51), TokenLayout.sequence(32)


def explanation(layout, classes=3):
    rng = np.random.default_rng(0)
    return Explanation(
        row=0,
        path="a.png",
        layout=layout,
        class_ids=tuple(range(classes)),
        names=tuple(f"class {i}" for i in range(classes)),
        posterior=(0.6, 0.3, 0.1),
        log_prob=rng.normal(-5, 1, (classes, layout.num_tokens)).astype(np.float32),
        unconditional=rng.normal(-5, 1, layout.num_tokens).astype(np.float32),
        target=0,
        contrast=1,
        label=None,
        label_name="",
        pixels=rng.integers(0, 256, (32, 32, 3), dtype=np.uint8),
    )


@pytest.mark.parametrize("layout", [RASTER, WIDE], ids=str)
@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_every_grid_can_be_shown(layout, suffix, tmp_path):
    out = tmp_path / f"a.{suffix}"
    write_explanations([explanation(layout)], Weighting(), out, title="a", about="b")
    if suffix == "png":
        assert Image.open(out).size == (1560, 780)
    else:
        assert "class 0 vs class 1" in out.read_text() or suffix == "svg"


def test_the_arrays_of_a_single_grid_are_its_log_ratios(tmp_path):
    e = explanation(RASTER)
    write_explanations([e], Weighting(), tmp_path / "a.png", title="", about="", npz=tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["patch_nums"].tolist() == [16] and arrays["scale_weight"].tolist() == [1]
        np.testing.assert_array_equal(arrays["map_contrast"][0], e.log_ratio(0, 1).reshape(16, 16))


def test_the_arrays_of_grids_that_are_not_square_have_their_rows_and_columns(tmp_path):
    write_explanations([explanation(WIDE)], Weighting(), tmp_path / "a.png", title="", about="", npz=tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["patch_nums"].tolist() == [[1, 3], [4, 12]]
        assert arrays["scale_weight"] == pytest.approx([3 / 48, 1])
        assert arrays["map_subject"].shape == (1, 4, 12)


def test_a_single_grid_is_not_repeated_scale_by_scale():
    html = card(explanation(RASTER), Weighting())
    assert "scale by scale" not in html and html.count("<img") == 4  # the input and three maps
    assert len(explanation(RASTER).cumulative_log_odds()[0].values) == 16, "one value per row"


def test_grids_that_are_not_square_tell_the_page_their_rows():
    html = card(explanation(WIDE), Weighting())
    rows = [int(n) for n in re.findall(r'data-rows="(\d+)"', html)]
    assert rows == [4, 4, 4, 1, 4] and "1×3" in html and "4×12" in html


def test_tokens_without_a_grid_need_a_footprint():
    with pytest.raises(UsageError, match="there are no maps"):
        explanation(SEQUENCE).panels(Weighting())
