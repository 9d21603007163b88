"""avarc sample --image --mask: a part of an image is painted, and the rest is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from avarc_cli.cli import main
from avarc_cli.data.painting import Painting
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.loading import load_model, load_tokenizer
from avarc_cli.model_spec import ModelSpec
from avarc_cli.models.maskgit.config import MaskGITConfig
from avarc_cli.models.maskgit.initialize import initialize_uvit
from avarc_cli.models.maskgit.uvit import UViT
from avarc_cli.sampling.painting import known_tokens
from avarc_cli.zoo.local_files import ASSETS

EIGHT = str(ASSETS / "digits/test/8/0028.png")


def paint(*options, image=EIGHT, mask="0,0,32,16"):
    return main(["sample", "3", "--count", "3", "--image", str(image), "--mask", str(mask), *map(str, options)])


def test_the_rest_of_the_image_is_kept(tmp_path):
    assert paint("--out", tmp_path / "x.npz") == 0
    top, bottom = np.split(np.load(tmp_path / "x.npz")["arr_0"].astype(int), 2, axis=1)
    image = Preprocess("fit", 16)(Path(EIGHT)).astype(int)
    assert np.abs(bottom[:, 2:] - image[10:]).mean() < 20 < np.abs(top - image[:8]).mean(), "a few pixels overlap"
    assert np.abs(top[0] - top[1]).max() > 30, "and each is another"
    assert len(json.loads((tmp_path / "x.npz.json").read_text())["sampling"]["known"]) == 64


def test_a_picture_as_mask_and_a_box_outside_say_the_same(tmp_path):
    white = np.full((32, 32), 255, dtype=np.uint8)
    white[16:, :] = 0
    Image.fromarray(white).save(tmp_path / "mask.png")
    for name, mask in (("a", "0,0,32,16"), ("b", tmp_path / "mask.png"), ("c", "outside:0,16,32,32")):
        assert paint("--out", tmp_path / f"{name}.npz", mask=mask) == 0
    each = [(tmp_path / f"{name}.npz").read_bytes() for name in "abc"]
    assert each[0] == each[1] == each[2]


def test_the_tokens_of_the_image_outside_of_the_mask_are_kept_scale_by_scale():
    model = load_model("digits")
    known = known_tokens(model, Painting.read(Path(EIGHT), "0,0,32,16"))
    grids = np.split(known.kept_L, model.tokenizer.layout.grid_ends[:-1])
    assert grids[0].all() and not grids[-1].all()
    finest = grids[-1].reshape(model.tokenizer.layout.grids[-1])
    rows = len(finest) // 2
    assert finest[rows:].all() and not finest[:rows].any()


def test_a_maskgit_of_tokens_on_a_grid_paints_too(tmp_path):
    codes = load_tokenizer("digits-vq").vocab_size
    config = MaskGITConfig(depth=2, width=32, heads=16, hidden=64, num_classes=10, vocab_size=codes, num_tokens=64)
    save_file(initialize_uvit(UViT(config)).state_dict(), tmp_path / "m.safetensors")
    options = ["--model", tmp_path / "m.safetensors", "--tokenizer", "digits-vq"]
    assert paint(*options, "--out", tmp_path / "x.png") == 0
    model = load_model(ModelSpec(str(tmp_path / "m.safetensors"), "digits-vq"))
    known = known_tokens(model, Painting.read(Path(EIGHT), "0,0,32,16"))
    assert known.kept_L.reshape(8, 8).tolist() == [[False] * 8] * 4 + [[True] * 8] * 4
    generator = torch.Generator().manual_seed(0)
    tokens = model.likelihood.sample(torch.tensor([3]), generators=[generator], known=known)[0].numpy()
    assert (tokens == known.tokens_L)[known.kept_L].all() and tokens.max() < codes


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a picture of another size, black and white ones, and text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name, size, color in (("small", 16, 255), ("black", 32, 0), ("white", 32, 255)):
        Image.new("L", (size, size), color).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "text.png").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--image", EIGHT], 2, "--image needs --mask"),
        (["--mask", "0,0,32,16"], 2, "--mask needs --image"),
        (["--preprocess", "fit"], 2, "--preprocess needs --image"),
        (["--image", "none.png", "--mask", "0,0,32,16"], 2, "'none.png' does not exist"),
        (["--image", "in", "--mask", "0,0,32,16"], 2, "'in' is a folder"),
        (["--image", "in/text.png", "--mask", "0,0,32,16"], 2, "it is not an image of a known format"),
        (["--image", EIGHT, "--mask", "in/text.png"], 2, "it is not an image of a known format"),
        (["--image", EIGHT, "--mask", "0,0,8"], 2, "it is neither a box nor a file"),
        (["--image", EIGHT, "--mask", "0,0,33,8"], 2, "there is no box --mask 0,0,33,8"),
        (["--image", EIGHT, "--mask", "8,0,8,8"], 2, "there is no box"),
        (["--image", EIGHT, "--mask", "0,0,32,32"], 2, "covers all of"),
        (["--image", EIGHT, "--mask", "outside:0,0,32,32"], 2, "covers nothing of"),
        (["--image", EIGHT, "--mask", "in/black.png"], 2, "covers nothing of"),
        (["--image", EIGHT, "--mask", "in/white.png"], 2, "covers all of"),
        (["--image", EIGHT, "--mask", "in/small.png"], 2, "it has 16 x 16 pixels, the image 32 x 32"),
        (["--image", EIGHT, "--mask", "0,0,2,2"], 2, "the mask covers no cell of the image"),
        (["--image", EIGHT, "--mask", "0,0,32,16", "--model", "digits-titok"], 2, "its tokens have none"),
        (["--image", EIGHT, "--mask", "0,0,32,16", "--model", "digits-llamagen"], 2, "draws tokens in its own order"),
        (["--image", EIGHT, "--mask", "0,0,32,16", "--preprocess", "x"], 2, "unknown preprocessing 'x'"),
    ],
)
def test_wrong_requests_write_nothing(files, capsys, options, code, says):
    assert main(["sample", "3", "--out", "x.npz", *options]) == code
    assert says in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in files.iterdir()] == ["in"]


def test_the_image_and_the_mask_are_never_replaced(files, capsys):
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 32, 16))
    mask.save("in/half.png")
    before = {path: path.read_bytes() for path in files.rglob("*.png")}
    for out, image, mask in (("in/small.png", "in/small.png", "0,0,8,8"), ("in/half.png", EIGHT, "in/half.png")):
        assert main(["sample", "3", "--image", image, "--mask", mask, "--out", out, "--overwrite"]) == 2
        assert "this command reads it" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in files.rglob("*.png")} == before
