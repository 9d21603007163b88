"""A model of handwritten digits that is to read color photos: one warning, and no error."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from avarc_cli.cli import main
from avarc_cli.zoo.local_files import ASSETS

WARNED = "is a color photo, but digits"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with three large images: two in color, one in gray."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    slope = np.linspace(0, 255, 200).astype(np.uint8)
    for i in range(2):
        pixels = np.stack([np.tile(slope, (150, 1)), np.tile(slope[::-1], (150, 1)), np.full((150, 200), 90)], axis=2)
        Image.fromarray((pixels + rng.integers(0, 9, (150, 200, 1))).clip(0, 255).astype(np.uint8)).save(
            folder / f"{i}.jpg"
        )
    Image.fromarray(np.tile(slope, (150, 1))).convert("RGB").save(folder / "gray.jpg")
    return folder


@pytest.mark.parametrize(
    "command", [["classify"], ["explain", "--out", "x.png"], ["encode", "--out", "x.h5"]], ids=lambda words: words[0]
)
def test_photos_are_reported_once(command, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([command[0], str(photos), *command[1:]]) == 0
    assert capsys.readouterr().err.count(WARNED) == 1


def test_the_warning_names_the_photo_and_its_size(photos, capsys):
    assert main(["--quiet", "classify", str(photos / "1.jpg")]) == 0
    assert "1.jpg (200 x 150 pixels)" in capsys.readouterr().err


def test_gray_scans_digits_and_other_models_are_not_reported(photos, models, tmp_path, capsys):
    small = Image.open(photos / "0.jpg").resize((28, 28))
    small.save(tmp_path / "small.png")
    for words in (
        [photos / "gray.jpg"],
        [tmp_path / "small.png"],
        [next((ASSETS / "digits" / "test" / "3").iterdir())],
        [photos / "0.jpg", *models],
    ):
        assert main(["classify", *map(str, words)]) == 0
        assert "color photo" not in capsys.readouterr().err


def test_unreadable_images_do_not_matter(photos, tmp_path, capsys):
    (tmp_path / "a.jpg").write_text("not a picture")
    (tmp_path / "b.jpg").write_bytes((photos / "0.jpg").read_bytes())
    assert main(["classify", str(tmp_path)]) == 3
    assert capsys.readouterr().err.count(WARNED) == 1
