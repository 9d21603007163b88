"""Views of an image, pixel by pixel, against the published recipe written out with Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from avarc_cli.data import Preprocess
from avarc_cli.data.views import Views
from avarc_cli.errors import UsageError

BOX, BICUBIC, LANCZOS = Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
quick = settings(max_examples=40)


def noise(width, height):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def center_crop(image, side):
    """As ADM does, which LlamaGen took over."""
    while min(image.size) >= 2 * side:
        image = image.resize(tuple(edge // 2 for edge in image.size), BOX)
    scale = side / min(image.size)
    image = image.resize(tuple(round(edge * scale) for edge in image.size), BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def torchvision_ten_crop(image, size):
    """Corners, then the center, of the image and of its mirror image."""
    crops = []
    for each in (image, image.transpose(MIRROR)):
        right, bottom = each.width - size, each.height - size
        middle = (round(right / 2.0), round(bottom / 2.0))
        for left, top in ((0, 0), (right, 0), (0, bottom), (right, bottom), middle):
            crops.append(each.crop((left, top, left + size, top + size)))
    return crops


def center_first(crops):
    return np.stack([np.asarray(crops[i]) for i in (4, 0, 1, 2, 3, 9, 5, 6, 7, 8)])


@pytest.mark.parametrize(("size", "crop_range", "side"), [(256, 1.1, 281), (256, 1.05, 268), (384, 1.1, 422)])
@pytest.mark.parametrize("sides", [(700, 500), (300, 1300), (256, 256), (90, 70)])
def test_ten_crops_are_those_that_llamagen_was_trained_on(sides, size, crop_range, side):
    image = noise(*sides)
    views = Preprocess("adm", size, views=Views("ten-crop", crop_range)).apply_views(image, "x")
    assert np.array_equal(views, center_first(torchvision_ten_crop(center_crop(image, side), size)))


@quick
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40),
    crop_range=st.floats(1, 2),
)
def test_ten_crops_of_any_size_and_range(width, height, size, crop_range):
    pre, image = Preprocess("adm", size, views=Views("ten-crop", crop_range)), noise(width, height)
    views = pre.apply_views(image, "x")
    expected = torchvision_ten_crop(center_crop(image, int(size * crop_range)), size)
    assert np.array_equal(views, center_first(expected)) and np.array_equal(pre.apply(image, "x"), views[0])
    assert Preprocess.parse(str(pre)) == pre


@pytest.mark.parametrize(("mode", "edge"), [("fit", 44), ("resize-crop", round(1.125 * 44))])
def test_other_modes_make_the_image_that_the_crops_are_cut_from_at_its_size(mode, edge):
    image = noise(120, 90)
    scaled = image.resize((int(edge * 120 / 90), edge), LANCZOS)
    left, top = (round((length - 44) / 2.0) for length in scaled.size)
    square = scaled.crop((left, top, left + 44, top + 44))
    views = Preprocess(mode, 40, views=Views("ten-crop")).apply_views(image, "x")
    assert np.array_equal(views, center_first(torchvision_ten_crop(square, 40)))


@pytest.mark.parametrize("mode", ["adm", "fit", "resize-crop", "none"])
def test_a_flip_is_the_image_and_its_mirror_image(mode):
    image = noise(32, 32) if mode == "none" else noise(70, 50)
    plain = Preprocess(mode, 32).apply(image, "x")
    views = Preprocess(mode, 32, views=Views("flip")).apply_views(image, "x")
    assert np.array_equal(views, np.stack([plain, plain[:, ::-1]]))


def test_a_file_is_read_as_view_0():
    file, pre = io.BytesIO(), Preprocess("fit", 20, views=Views("ten-crop"))
    noise(50, 40).save(file, "png")
    pixels = pre.apply(Image.open(file), "x")
    assert pixels.shape == (20, 20, 3) and np.array_equal(pixels, pre.apply_views(noise(50, 40), "x")[0])


@pytest.mark.parametrize(
    ("pre", "said"),
    [
        (
            Preprocess("adm", 256, views=Views("ten-crop")),
            "adm 281 box, bicubic; upright, alpha over white, 16 bits scaled; ten-crop 256, range 1.1",
        ),
        (
            Preprocess("resize-crop", 256, reference=True, views=Views("ten-crop", 1.05)),
            "resize-crop 302->268 lanczos; as PIL converts to RGB; ten-crop 256, range 1.05",
        ),
        (
            Preprocess("fit", 16, views=Views("flip")),
            "fit 16->16 lanczos; upright, alpha over white, 16 bits scaled; flip",
        ),
        (Preprocess("none", 16), "none 16; upright, alpha over white, 16 bits scaled"),
    ],
)
def test_a_description_says_how_view_0_was_made(pre, said):
    assert str(pre) == said and Preprocess.parse(said) == pre


@pytest.mark.parametrize(
    "views",
    [
        "flop",
        "ten-crop",
        "ten-crop 16",
        "ten-crop 0, range 1.1",
        "ten-crop 16, range 1.2",
        "ten-crop 16, range 1.1.1",
        "ten-crop 16, range 9",
    ],
)
def test_descriptions_of_other_views_are_not_understood(views):
    with pytest.raises(UsageError):
        Preprocess.parse(f"fit 17->17 lanczos; as PIL converts to RGB; {views}")


@pytest.mark.parametrize("crop_range", [0.99, 2.01, -1.1, float("nan"), float("inf")])
def test_ranges_that_leave_out_parts_of_the_image_are_refused(crop_range):
    with pytest.raises(UsageError, match="--crop-range"):
        Views("ten-crop", crop_range)


def test_mode_none_has_no_ten_crops():
    with pytest.raises(UsageError, match="--ten-crop does not go with --preprocess none"):
        Preprocess("none", 16, views=Views("ten-crop"))
