from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from avarc_cli.data import Preprocess, load_rgb
from avarc_cli.data import preprocess as module
from avarc_cli.errors import UnreadableImage, UsageError

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"]
FORMATS = {"1": "png", "CMYK": "tiff", "YCbCr": "jpg", "F": "tiff", "HSV": "tiff", "PA": "tiff"}
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@quick
@given(
    mode=st.sampled_from(["L", "LA", "P", "RGB", "RGBA", "1", "I;16"]),
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    preprocess=st.builds(Preprocess, st.sampled_from(["resize-crop", "fit"]), st.integers(1, 40)),
)
def test_any_image_of_any_size_becomes_a_square_of_bytes(tmp_path, mode, width, height, preprocess):
    path = save(Image.new(mode, (width, height)), tmp_path / "x.png")
    pixels = preprocess(path)
    assert pixels.shape == (preprocess.size, preprocess.size, 3)
    assert pixels.dtype == np.uint8


@quick
@given(size=st.integers(2, 40), extra=st.integers(0, 21), tall=st.booleans())
def test_the_crop_is_torchvisions_with_halves_rounded_to_even(tmp_path, size, extra, tall):
    pre = Preprocess("resize-crop", size)
    edge = round(1.125 * size)
    width, height = (edge, edge + extra) if tall else (edge + extra, edge)  # needs no resizing
    image = noise(width, height)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    pixels = pre(save(Image.fromarray(image), tmp_path / "x.png"))
    assert np.array_equal(pixels, image[top : top + size, left : left + size])


def test_resizing_is_one_lanczos_step_with_the_longer_edge_rounded_down(tmp_path):
    image = Image.fromarray(noise(500, 333))
    pixels = Preprocess("resize-crop", 256)(save(image, tmp_path / "x.png"))
    scaled = image.resize((int(288 * 500 / 333), 288), Image.Resampling.LANCZOS)  # 432.43 -> 432
    assert scaled.width == 432
    assert np.array_equal(pixels, np.asarray(scaled)[16:272, 88:344])


@pytest.mark.parametrize("sides", [(1300, 700), (520, 1111), (512, 512), (511, 900), (256, 256), (90, 70)])
def test_adm_halves_by_boxes_then_scales_bicubically_and_crops_the_center(tmp_path, sides):
    image = Image.fromarray(noise(*sides))
    pixels = Preprocess("adm", 256)(save(image, tmp_path / "x.png"))
    while min(image.size) >= 512:
        image = image.resize(tuple(side // 2 for side in image.size), Image.Resampling.BOX)
    scale = 256 / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), Image.Resampling.BICUBIC)
    left, top = (image.width - 256) // 2, (image.height - 256) // 2
    assert np.array_equal(pixels, np.asarray(image)[top : top + 256, left : left + 256])


def test_fit_and_none_leave_an_image_of_the_right_size_as_it_is(tmp_path):
    image = noise(32, 32)
    path = save(Image.fromarray(image), tmp_path / "x.png")
    assert np.array_equal(Preprocess("fit", 32)(path), image)
    assert np.array_equal(Preprocess("none", 32)(path), image)


def test_none_rejects_another_size_and_reports_both(tmp_path):
    path = save(Image.fromarray(noise(30, 32)), tmp_path / "x.png")
    with pytest.raises(UnreadableImage) as error:
        Preprocess("none", 32)(path)
    assert error.value.why == "it is 30 x 32 pixels, the tokenizer reads 32 x 32"


def test_the_description_contains_mode_and_sizes():
    upright = "upright, alpha over white, 16 bits scaled"
    assert str(Preprocess("resize-crop", 256)) == f"resize-crop 288->256 lanczos; {upright}"
    assert str(Preprocess("fit", 16)) == f"fit 16->16 lanczos; {upright}"
    assert str(Preprocess("adm", 256)) == f"adm 256 box, bicubic; {upright}"
    assert str(Preprocess("none", 16)) == f"none 16; {upright}"
    assert str(Preprocess("none", 16, reference=True)) == "none 16; as PIL converts to RGB"
    for mode in module.MODES:
        for each in (Preprocess(mode, 48), Preprocess(mode, 48, reference=True)):
            assert Preprocess.parse(str(each)) == each
    for text in ("", "fit", "fit 16->16 bilinear", "magic 16", "fit 16->16 lanczos; upside down"):
        with pytest.raises(UsageError):
            Preprocess.parse(text)


def test_descriptions_of_earlier_versions_mean_what_these_versions_did():
    assert Preprocess.parse("resize-crop 288->256 lanczos") == Preprocess("resize-crop", 256)
    assert module.current_description("none 16") == str(Preprocess("none", 16))
    assert module.current_description("of a later version") == "of a later version"


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (None, Preprocess("fit", 16)),
        ("none", Preprocess("none", 16)),
        ("reference", Preprocess("fit", 16, reference=True)),
        ("resize-crop,reference", Preprocess("resize-crop", 16, reference=True)),
    ],
)
def test_the_option_names_a_mode_reference_or_both(asked, chosen):
    assert Preprocess.choose(asked, "fit", 16) == chosen


@pytest.mark.parametrize("asked", ["", "fit,none", "reference,reference", "reference,fit", "fit,plain", ",", "fit,"])
def test_other_options_are_usage_errors(asked):
    with pytest.raises(UsageError, match="unknown preprocessing"):
        Preprocess.choose(asked, "fit", 16)


def odd_images() -> dict[str, tuple[Image.Image, dict[str, object]]]:
    """Images on which the reference loader and ours differ, with the options they are saved with."""
    gray16 = Image.fromarray(np.arange(0, 65536, 512, dtype=np.uint16).reshape(8, 16))
    exif = Image.Exif()
    exif[module.ORIENTATION] = 6
    return {
        "turned.jpg": (Image.fromarray(noise(24, 16)), {"exif": exif, "quality": 95}),
        "turned.png": (Image.fromarray(noise(24, 16)), {"exif": exif}),
        "turned.tiff": (Image.fromarray(noise(24, 16)), {"exif": exif}),
        "rgba.png": (Image.fromarray(np.dstack([noise(24, 16), noise(24, 16)[..., 0]])), {}),
        "palette.png": (Image.fromarray(noise(24, 16)).quantize(8), {"transparency": 0}),
        "gray16.png": (gray16, {}),
        "gray16.tiff": (gray16, {}),
        "cmyk.jpg": (Image.fromarray(noise(24, 16)).convert("CMYK"), {}),
    }


@pytest.mark.parametrize("name", odd_images())
def test_the_reference_mode_is_what_pil_converts_to_rgb(tmp_path, name):
    image, options = odd_images()[name]
    path = save(image, tmp_path / name, **options)
    with path.open("rb") as file:
        expected = np.asarray(Image.open(file).convert("RGB"))  # VAR's pil_loader
    assert np.array_equal(np.asarray(load_rgb(path, reference=True)), expected)
    if name not in {"cmyk.jpg", "turned.tiff"}:  # Pillow turns TIFF by itself
        ours = np.asarray(load_rgb(path))
        assert ours.shape != expected.shape or not np.array_equal(ours, expected)


def test_unknown_modes_and_sizes_are_usage_errors():
    with pytest.raises(UsageError, match="unknown preprocessing 'squash'"):
        Preprocess("squash", 256)
    with pytest.raises(UsageError, match="at least 1"):
        Preprocess("fit", 0)


@pytest.mark.parametrize("mode", MODES)
def test_every_color_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / f"x.{FORMATS.get(mode, 'png')}"
    try:
        Image.new(mode, (4, 3)).save(path)
    except (OSError, KeyError):
        pytest.skip(f"this version of Pillow does not write {mode}")
    image = load_rgb(path)
    assert (image.mode, image.size) == ("RGB", (4, 3))


@pytest.mark.parametrize(
    ("value", "mode", "color"),
    [
        ((255, 0, 0, 0), "RGBA", (255, 255, 255)),  # the color under full transparency is not visible
        ((10, 20, 30, 255), "RGBA", (10, 20, 30)),
        ((0, 0, 0, 128), "RGBA", (127, 127, 127)),
        ((40, 255), "LA", (40, 40, 40)),
        ((40, 0), "LA", (255, 255, 255)),
        (257 * 200, "I;16", (200, 200, 200)),
        (65535, "I;16", (255, 255, 255)),
        (7, "L", (7, 7, 7)),
        (1, "1", (255, 255, 255)),
    ],
)
def test_colors_are_preserved(tmp_path, value, mode, color):
    path = save(Image.new(mode, (2, 2), value), tmp_path / "x.png")
    assert load_rgb(path).getpixel((1, 1)) == color


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_color_becomes_white(tmp_path, mode):
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (9, 9, 9))
    image = image.convert(mode, palette=Image.Palette.ADAPTIVE)
    black = image.getpixel((0, 0))
    path = save(image, tmp_path / "x.png", transparency=black)
    assert load_rgb(path).getpixel((0, 0)) == (255, 255, 255)
    assert load_rgb(path).getpixel((1, 0)) == (9, 9, 9)


@pytest.mark.parametrize(("top", "expected"), [(1.0, 255), (255.0, 255), (65535.0, 255), (200.0, 200), (514.0, 2)])
def test_floating_point_gray_is_scaled_by_the_narrowest_range(tmp_path, top, expected):
    gray = np.array([[0.0, top]], dtype=np.float32)
    path = save(Image.fromarray(gray), tmp_path / "x.tiff")
    assert load_rgb(path).getpixel((1, 0)) == (expected,) * 3


@pytest.mark.parametrize("value", [-1.0, 90000.0, np.nan, np.inf])
def test_floating_point_gray_of_unknown_range_is_unreadable(tmp_path, value):
    path = save(Image.fromarray(np.array([[0.0, value]], dtype=np.float32)), tmp_path / "x.tiff")
    with pytest.raises(UnreadableImage, match="neither 8 nor 16 bits"):
        load_rgb(path)


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floating_point_gray_that_overshoots_its_range_is_clipped(tmp_path, white):
    gray = np.array([[-0.1, 0.0, 0.5, 1.0, 1.2]], dtype=np.float32) * white
    path = save(Image.fromarray(gray), tmp_path / "x.tiff")
    assert np.asarray(load_rgb(path))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_whole_numbers_that_stop_at_255_are_8_bit(tmp_path, dtype):
    path = save(Image.fromarray(np.array([[0, 7, 255]], dtype=dtype)), tmp_path / "x.tiff")
    assert np.asarray(load_rgb(path))[0, :, 0].tolist() == [0, 7, 255]


def test_a_16_bit_tiff_in_which_zero_is_white_is_inverted(tmp_path):
    gray = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    path = save(Image.fromarray(gray), tmp_path / "x.tiff", tiffinfo={262: 0})
    assert np.asarray(load_rgb(path))[0, :, 0].tolist() == [255, 155, 0]


def bmp(*pixels):
    """A BMP of one row with an alpha mask, which Pillow reads but does not write; pixels: (red, green, blue, alpha)."""
    size, header = 4 * len(pixels), 14 + 108
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, len(pixels), 1, 1, 32, 3, size, 0, 0, 0, 0) + masks
    rows = b"".join(bytes((blue, green, red, alpha)) for red, green, blue, alpha in pixels)
    return struct.pack("<2sIHHI", b"BM", header + size, 0, 0, header) + info.ljust(108, b"\0") + rows


def tga(*pixels):
    """The same as an uncompressed TGA."""
    rows = b"".join(bytes((blue, green, red, alpha)) for red, green, blue, alpha in pixels)
    return struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, len(pixels), 1, 32, 8) + rows


@pytest.mark.parametrize("write", [bmp, tga])
def test_alpha_that_is_0_everywhere_was_not_set(tmp_path, write):
    path = tmp_path / "x.img"
    path.write_bytes(write((10, 20, 30, 0), (40, 50, 60, 0)))
    assert np.asarray(load_rgb(path)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    path.write_bytes(write((10, 20, 30, 0), (40, 50, 60, 255)))
    assert np.asarray(load_rgb(path)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n0 0 16 16 rectfill\nshowpage\n%%EOF\n"
    )
    with pytest.raises(UnreadableImage, match="not an image of a known format"):
        load_rgb(tmp_path / "x.png")
    assert not (tmp_path / "called").exists()


def test_cmyk_is_converted_as_pillow_does(tmp_path):
    image = Image.fromarray(noise(8, 8)).convert("CMYK")
    path = save(image, tmp_path / "x.jpg", quality=100)
    assert np.array_equal(np.asarray(load_rgb(path)), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    shown = Image.new("RGB", (48, 32), "black")
    shown.paste("white", (0, 0, 16, 16))  # white in the top left corner of the upright image
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    stored = shown.transpose(module.TRANSPOSE[undo]) if undo > 1 else shown
    exif = Image.Exif()
    exif[module.ORIENTATION] = orientation
    path = save(stored, tmp_path / f"x.{suffix}", exif=exif)
    upright = load_rgb(path)
    assert upright.size == (48, 32)
    assert upright.getpixel((4, 4))[0] > 200
    assert max(upright.getpixel(corner)[0] for corner in [(43, 4), (4, 27), (43, 27)]) < 50


def test_corrupt_exif_is_ignored(tmp_path):
    image = Image.fromarray(noise(8, 8))
    for number, exif in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x" * 40)):
        path = save(image, tmp_path / f"{number}.png", exif=exif)
        assert np.array_equal(np.asarray(load_rgb(path)), np.asarray(image))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tiff", "webp", "bmp"])
def test_truncated_files_are_unreadable(tmp_path, suffix):
    data = save(Image.fromarray(noise(64, 64)), tmp_path / f"x.{suffix}").read_bytes()
    for kept in (0, 1, 20, len(data) // 2):
        (tmp_path / "cut").write_bytes(data[:kept])
        with pytest.raises(UnreadableImage) as error:
            load_rgb(tmp_path / "cut")
        assert error.value.why
        assert str(tmp_path) not in error.value.why


def test_other_files_are_unreadable(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dead.png").symlink_to(tmp_path / "gone")
    reasons = {
        "text.png": "not an image",
        "pipe.png": "not a regular file",
        "dead.png": "no such file",
        "none.png": "no such file",
        ".": "not a regular file",
        "nul\0.png": "null",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImage, match=reason):
            load_rgb(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission_is_unreadable(tmp_path):
    path = save(Image.new("RGB", (2, 2)), tmp_path / "x.png")
    path.chmod(0)
    with pytest.raises(UnreadableImage, match="permission denied"):
        load_rgb(path)


def test_decompression_bombs_are_rejected_before_decoding(tmp_path):
    for side in (12_000, 40_000):  # one above our limit, one above Pillow's too
        header = b"P4 %d %d\n" % (side, side)  # Pillow trusts the header of a portable bitmap
        (tmp_path / "x.pbm").write_bytes(header)
        with pytest.raises(UnreadableImage, match="pixels"):
            load_rgb(tmp_path / "x.pbm")


def test_an_image_too_elongated_to_scale_is_rejected(tmp_path):
    path = save(Image.new("L", (60_000, 1)), tmp_path / "x.png")
    with pytest.raises(UnreadableImage, match="too elongated"):
        Preprocess("resize-crop", 256)(path)


def test_pillow_warnings_are_suppressed(tmp_path, recwarn):
    image = Image.new("P", (4, 4))
    load_rgb(save(image, tmp_path / "x.png", transparency=bytes(range(4))))
    assert not list(recwarn)


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(16, 12)).save(buffer, format)
    return buffer.getvalue()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.sampled_from([encoded(format) for format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")]),
    edits=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_corrupt_bytes_give_an_image_or_a_reported_error(tmp_path, data, edits):
    corrupt = bytearray(data)
    for place, patch in edits:
        corrupt[place : place + len(patch)] = patch
    (tmp_path / "x").write_bytes(corrupt)
    try:
        pixels = Preprocess("fit", 8)(tmp_path / "x")
    except UnreadableImage:
        return
    assert pixels.shape == (8, 8, 3)
