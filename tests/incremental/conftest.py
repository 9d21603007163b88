"""A tiny model of ten classes, pictures of four colours that it has never seen, and a bank with two of them."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from avarc_cli.cli import main
from avarc_cli.train.save import save_tokenizer

COLOURS = {"amber": (230, 160, 20), "blue": (20, 40, 220), "coral": (250, 90, 90), "dark": (15, 15, 15)}
FIT = ["--method", "lora", "--rank", "2", "--steps", "8", "--batch-size", "4"]
IMAGES = 6  # of each colour


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """A folder with one sub-folder a colour: bands of the colour on grey noise."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(IMAGES):
            pixels = rng.integers(100, 130, (64, 64, 3), dtype=np.uint8)
            pixels[8 * (i % 3) : 32 + 8 * (i % 3)] = colour
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def models(tiny, tiny_files, tmp_path_factory):
    """The tiny generator, and its tokenizer as `avarc train` writes one: the file knows its scales."""
    tokenizer = tmp_path_factory.mktemp("tokenizer") / "vq.safetensors"
    save_tokenizer(tiny.vqvae(), tokenizer, family="vqvae", preprocess="fit")
    return ["--model", str(tiny_files / "VAR.pth"), "--tokenizer", str(tokenizer)]


@pytest.fixture(scope="session")
def setting(colours, models, tmp_path_factory):
    """The colours as a token cache, and a bank with amber and blue."""
    folder = tmp_path_factory.mktemp("setting")
    cache, bank = folder / "colours.h5", folder / "bank"
    assert main(["encode", str(colours), *models, "--out", str(cache)]) == 0
    for name in ("amber", "blue"):
        assert main(["add-class", name, str(cache), *models, *FIT, "--no-offset", "--bank", str(bank)]) == 0
    return SimpleNamespace(cache=cache, bank=bank, colours=colours, models=models)


@pytest.fixture(autouse=True, scope="session")
def few_drawn_images():
    """Offsets are fitted on two images of each old class: quick, and as good for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avarc_cli.incremental.offsets.SAMPLED", 2)
        yield


@pytest.fixture
def bank(setting, tmp_path):
    """A copy of the bank, to be changed."""
    return shutil.copytree(setting.bank, tmp_path / "bank")
