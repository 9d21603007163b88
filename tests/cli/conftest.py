"""Options that name the tiny model; and for class banks: images in four colors, encoded, with two classes added."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import Golden
from PIL import Image

from avarc_cli.cli import main
from avarc_cli.train.save import save_tokenizer

COLORS = {"amber": (230, 160, 20), "blue": (20, 40, 220), "coral": (250, 90, 90), "dark": (15, 15, 15)}
FIT = ["--method", "lora", "--rank", "2", "--steps", "8", "--batch-size", "4"]
IMAGES = 6  # of each color


@pytest.fixture(scope="session")
def models(tiny_files: Path) -> list[str]:
    """Options that name the published files of the tiny model."""
    return ["--model", str(tiny_files / "VAR.pth"), "--tokenizer", str(tiny_files / "VAE.pth")]


@dataclass(frozen=True)
class Setting:
    cache: Path
    """Token cache of all images."""
    bank: Path
    """Class bank with amber and blue."""
    colors: Path
    """Image folder with one subfolder per color."""
    models: list[str]
    """Options that name the tiny model, and its tokenizer in a file as `avarc train tokenizer` writes it."""


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folder with one subfolder per color: bands of the color on gray noise."""
    folder, rng = tmp_path_factory.mktemp("colors"), np.random.default_rng(0)
    for name, color in COLORS.items():
        (folder / name).mkdir()
        for i in range(IMAGES):
            pixels = rng.integers(100, 130, (64, 64, 3), dtype=np.uint8)
            pixels[8 * (i % 3) : 32 + 8 * (i % 3)] = color
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def setting(colors: Path, tiny: Golden, tiny_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The colors as a token cache, and a bank with amber and blue: never written to (`bank` is a copy)."""
    folder = tmp_path_factory.mktemp("setting")
    cache, bank, tokenizer = folder / "colors.h5", folder / "bank", folder / "vq.safetensors"
    save_tokenizer(tiny.vqvae(), tokenizer, family="vqvae", preprocess="fit")  # this file knows its scales
    models = ["--model", str(tiny_files / "VAR.pth"), "--tokenizer", str(tokenizer)]
    assert main(["encode", str(colors), *models, "--out", str(cache)]) == 0
    for name in ("amber", "blue"):
        assert main(["add-class", name, str(cache), *models, *FIT, "--no-offset", "--bank", str(bank)]) == 0
    return Setting(cache, bank, colors, models)


@pytest.fixture(autouse=True, scope="module")
def few_drawn_images() -> Iterator[None]:
    """Fit offsets on two drawn images of each old class: fast, and enough for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avarc_cli.incremental.offsets.SAMPLED", 2)
        yield


@pytest.fixture
def bank(setting: Setting, tmp_path: Path) -> Path:
    """A copy of the bank, to be changed."""
    return shutil.copytree(setting.bank, tmp_path / "bank")
