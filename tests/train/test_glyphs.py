"""The benchmark of many classes, from images to its table, with ten letters of the font that Pillow brings."""

import sys
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from avarc_cli.cli import main
from avarc_cli.errors import UsageError

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import glyph_images
import glyphs

LETTERS = "ABCDEFGHIJ"


def test_ten_letters_from_images_to_a_table(tmp_path, monkeypatch, capsys):
    fonts = [(str(size), ImageFont.load_default(size)) for size in (20, 24, 28)]
    monkeypatch.setattr(glyph_images, "choose", lambda count: list(LETTERS)[:count])
    monkeypatch.setattr(glyph_images, "find", lambda chosen: fonts)
    monkeypatch.setattr(glyphs, "AGREEMENT", Fraction(1, 2))
    glyphs.render(tmp_path, 10)
    assert len(list(tmp_path.glob("train/*/*.png"))) == 60 and len(list(tmp_path.glob("test/*/*.png"))) == 30
    with Image.open(tmp_path / "train" / f"{ord('I'):x}" / "28-0.png") as image:
        left, top, right, bottom = image.getbbox()
    assert image.size == (32, 32) and abs(left + right - 32) <= 1 and abs(top + bottom - 32) <= 1, "it is in the middle"
    common = ["--augment", "none", "--batch-size", "8", "--device", "cpu"]
    shape = ["--image-size", "8", "--patch-nums", "1,2,4", "--vocab", "16", "--channels", "4", "--width", "32"]
    weights = [str(tmp_path / name) for name in ("vqvae.safetensors", "var.safetensors")]
    tokenizer = [*shape, "--multipliers", "1,1", "--blocks", "1", "--steps", "12", "--out", weights[0]]
    assert main(["--quiet", "train", "tokenizer", str(tmp_path / "train"), *common, *tokenizer]) == 0
    generator = ["--tokenizer", weights[0], "--depth", "1", "--width", "64", "--steps", "12", "--out", weights[1]]
    assert main(["--quiet", "train", "var", str(tmp_path / "train"), *common, *generator]) == 0
    capsys.readouterr()
    rows = glyphs.compare(tmp_path, 20, tmp_path / "classes.png")
    assert [row.candidates for row in rows] == [10, 10, 10]
    exhaustive, fixed, tuned = rows
    assert exhaustive.outcome[1:3] == (1, 210) and fixed.outcome.tokens == 10 * 1 + 3 * 20
    assert tuned.outcome.share <= 1 and (tmp_path / "classes.png").stat().st_size > 1000
    assert "20 of 20 images scored" in capsys.readouterr().err
    glyphs.compare(tmp_path, 20, None)
    assert "scored" not in capsys.readouterr().err, "images are scored once"


def test_missing_fonts_are_named_with_their_packages():
    with pytest.raises(UsageError) as raised:
        glyph_images.find([glyph_images.Font("fonts-nowhere", "nowhere.ttf")])
    assert "fonts-nowhere" in raised.value.why and "apt-get install" in raised.value.fix


def test_groups_are_disjoint_and_have_each_class_once():
    group = glyphs.groups(30, 10)
    assert all(c in group[c] for c in range(30)) and len({tuple(row) for row in group}) == 3


def test_the_characters_are_always_the_same():
    chosen = glyph_images.choose(1000)
    assert len(set(chosen)) == 1000 and chosen[:3] == ["七", "上", "丑"] and glyph_images.choose(1000) == chosen
