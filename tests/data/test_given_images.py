"""Images of programs: every form of an image gives the pixels that its file gives, and what is unclear is an error."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avarc_cli.data.datasets import open_images
from avarc_cli.data.given_images import image_set, image_sets, is_one_image
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import UnreadableImage, UsageError

torch = pytest.importorskip("torch")  # the oldest Python is tested without it

HOW = Preprocess("fit", 8)
ORIENTATION = 0x0112


def pixels_of(images, row=0):
    return image_set(images).load(row, HOW)


@pytest.fixture
def photo(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png", noise


def test_every_form_of_an_image_gives_the_same_pixels(photo):
    path, array = photo
    expected = HOW(path)
    channels_first = np.moveaxis(array, 2, 0)
    floats = (array / 255).astype(np.float32)
    forms = [
        path,
        str(path),
        Image.open(path),
        array,
        channels_first,
        floats,
        floats.astype(np.float64),
        torch.from_numpy(array),
        torch.from_numpy(floats),
        torch.from_numpy(np.moveaxis(floats, 2, 0).copy()).requires_grad_(),
        np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),  # opaque RGBA
    ]
    for form in forms:
        assert np.array_equal(pixels_of([form]), expected), type(form)


def test_gray_images_may_have_no_axis_of_channels_or_one_of_length_1():
    gray = np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8)
    expected = pixels_of([Image.fromarray(gray)])
    assert (np.ptp(expected, axis=2) == 0).all()
    for form in (gray, gray[..., None], gray[None], torch.from_numpy(gray)[None].float() / 255):
        assert np.array_equal(pixels_of([form]), expected)


def test_half_precision_is_read_as_well_as_it_can_be(photo):
    half = torch.from_numpy(photo[1] / 255).to(torch.bfloat16)
    assert np.abs(pixels_of([half]).astype(int) - HOW(photo[0])).max() <= 2


def test_an_image_of_pillow_is_turned_upright_and_put_on_white_as_its_file_is(photo, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for name, image, options in [
        ("turned.jpg", Image.fromarray(photo[1]), {"exif": exif}),
        ("clear.png", Image.new("RGBA", (9, 9), (200, 0, 0, 0)), {}),
        ("deep.png", Image.fromarray(np.full((9, 9), 40_000, np.uint16)), {}),
        ("print.tiff", Image.fromarray(photo[1]).convert("CMYK"), {}),
    ]:
        image.save(tmp_path / name, **options)
        assert np.array_equal(pixels_of([Image.open(tmp_path / name)]), HOW(tmp_path / name)), name


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 5, 3), np.uint8), "could both be its channels"),
        (np.zeros((5, 5, 2), np.uint8), "no axis has"),
        (np.zeros(5, np.uint8), "height x width"),
        (np.zeros((0, 5, 3), np.uint8), "height x width"),
        (np.zeros((5, 5), np.int64), "array of int64"),
        (np.full((5, 5), 255.0), "divide it by 255"),
        (np.linspace(-1, 1, 25).reshape(5, 5), r"\(image \+ 1\) / 2"),
        (np.linspace(-2.1, 2.6, 25).reshape(5, 5), "undo its normalization"),
        (np.full((5, 5), np.nan), "not finite"),
    ],
)
def test_arrays_without_a_clear_meaning_are_errors_that_say_what_to_do(array, message):
    with pytest.raises(UsageError, match=message) as raised:
        image_set([array])
    assert "image 0" in str(raised.value)


def test_what_is_no_image_is_named():
    with pytest.raises(UsageError, match="image 1 has the type dict"):
        image_set([np.zeros((4, 4), np.uint8), {}])
    with pytest.raises(UsageError, match="images from a int"):
        list(image_sets(7, at_once=2))
    broken = Image.new("RGB", (9, 9))
    broken.load = lambda: (_ for _ in ()).throw(OSError("truncated"))
    with pytest.raises(UnreadableImage, match="image 0"):
        image_set([broken])


def test_a_list_may_mix_files_and_images_in_memory_and_keeps_its_order(photo):
    path, array = photo
    dark = np.zeros((4, 4), np.uint8)
    mixed = image_set([dark, str(path), path, array])
    assert mixed.names[0] == "image 0" and mixed.names[3] == "image 3" and mixed.names[1].endswith("photo.png")
    assert [mixed.load(row, HOW).any() for row in range(4)] == [False, True, True, True]
    assert mixed.take(np.array([3, 0])).names == ("image 3", "image 0")
    assert not list(mixed.encoded.find_unreadable())
    stamps = mixed.encoded.stamps()
    assert (stamps[1] == stamps[2]).all() and (stamps[0] != stamps[3]).any()


def test_an_iterator_is_read_when_its_images_are_needed():
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield np.full((4, 4), number, np.uint8)

    sets = image_sets(endless(), at_once=3)
    assert not read
    assert next(sets).names == ("image 0", "image 1", "image 2") and len(read) == 3
    assert next(sets).names == ("image 3", "image 4", "image 5") and len(read) == 6


def test_what_is_there_already_is_one_set(photo):
    opened = open_images([photo[0]])
    assert list(image_sets(opened, at_once=1)) == [opened]
    for images, count in [(np.zeros((5, 6, 6, 3), np.uint8), 5), (torch.zeros(5, 3, 6, 6), 5), ([photo[0]] * 3, 3)]:
        assert [len(each) for each in image_sets(images, at_once=2)] == [count]
    assert not list(image_sets([], at_once=2)) and not list(image_sets(iter([]), at_once=2))


@pytest.mark.parametrize(
    ("images", "one"),
    [
        ("x.png", True),
        (Path("x.png"), True),
        (np.zeros((4, 4)), True),
        (torch.zeros(3, 4, 4), True),
        (np.zeros((2, 4, 4, 3)), False),
        (["x.png"], False),
        (iter(()), False),
    ],
)
def test_one_image_and_many_are_told_apart(images, one):
    assert is_one_image(images) is one


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"\x89PNG", "open it with Image.open"),
        (7, "has the type int"),
        (torch.eye(8).to_sparse(), "cannot be read as"),
        ("a" * 5000, "file name too long"),
    ],
)
def test_what_is_no_image_is_one_message(image, says):
    with pytest.raises(UsageError) as raised:
        image_set([np.zeros((8, 8), np.uint8), image])
    assert says in f"{raised.value} {raised.value.fix}"
