"""avarc reconstruct: how good a tokenizer is, and what the command refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from programs import run

from avarc_cli import tokens
from avarc_cli.cli import main
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.loading import ModelSpec, load_tokenizer
from avarc_cli.metrics import inception, protocol, reconstruction
from avarc_cli.metrics.reconstructed import Reconstructor
from avarc_cli.tokenizers.titok.config import TiTokConfig, TransformerConfig
from avarc_cli.tokenizers.titok.network import TiTok
from avarc_cli.tokens.reconstruct import reconstruct
from avarc_cli.train.save import save_tokenizer
from avarc_cli.zoo.local_files import ASSETS

DIGITS = ASSETS / "digits" / "test"


@dataclass
class MeanColors:
    """A network whose features are the mean of each row of pixels, four rows in all."""

    sha256: str = "6726825d"
    is_published: bool = True
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def __call__(self, images_BHH3):
        features = images_BHH3[:, 4:8].mean(axis=(2, 3)).astype(np.float32)
        return features, features


@pytest.fixture
def img(tmp_path, monkeypatch):
    """Twelve digits in the folder img of the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # without what this user has downloaded
    (tmp_path / "img").mkdir()
    for number, file in enumerate(sorted(DIGITS.rglob("*.png"))[::30]):
        (tmp_path / "img" / f"{number:02d}.png").write_bytes(file.read_bytes())
    return tmp_path / "img"


@pytest.fixture
def measure(img, capsys):
    """Runs the command; gives the exit code, standard output and the rest in one line."""

    def do(*options):
        capsys.readouterr()
        code = main(["reconstruct", "img", *options])
        shown = capsys.readouterr()
        return code, shown.out, " ".join(shown.err.split())

    return do


def test_numbers_are_those_of_the_written_reconstructions(measure, img, monkeypatch):
    monkeypatch.setattr(inception, "load", lambda path, device: MeanColors())
    Path("weights.pth").write_bytes(b"weights")
    code, shown, said = measure(
        "--out", "again", "--inception", "weights.pth", "--allow-few", "--batch-size", "5", "--json"
    )
    assert code == 0 and "biased upwards" in said
    found = json.loads(shown)
    assert main(["--quiet", "encode", "img", "--out", "img.h5"]) == 0
    tokens_NL = tokens.read(Path("img.h5")).tokens(range(12))[:, 0]
    images = np.stack([Preprocess("fit", 16)(file) for file in sorted(img.iterdir())])
    others = np.stack([np.asarray(Image.open(file)) for file in sorted(Path("again").iterdir())])
    tokenizer = load_tokenizer(ModelSpec("digits", device="cpu"))
    assert np.abs(others.astype(int) - reconstruct(tokenizer, tokens_NL[:, None])[:, 0]).max() <= 1  # roundings
    error = ((images.astype(float) - others) ** 2).mean(axis=(1, 2, 3))
    assert found["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / error)))
    one, two = (MeanColors()(each)[0].astype(float) for each in (images, others))
    covs = [np.cov(each, rowvar=False) for each in (one, two)]
    gap = one.mean(0) - two.mean(0)
    root = np.trace(scipy.linalg.sqrtm(covs[0] @ covs[1]).real)
    assert found["rfid"] == pytest.approx(gap @ gap + sum(map(np.trace, covs)) - 2 * root, abs=1e-6)
    assert [each["where"] for each in found["codes"]] == ["1 x 1", "2 x 2", "3 x 3", "5 x 5", "8 x 8", "all tokens"]
    last, every = found["codes"][-2:]
    assert last["used"] == len(np.unique(tokens_NL[:, -64:])) and every["used"] == len(np.unique(tokens_NL))
    assert (last["tokens"], every["tokens"]) == (12 * 64, tokens_NL.size)
    assert 0.9 < found["ssim"] < 1


def test_the_table_shows_how_codes_are_used(measure):
    code, shown, said = measure()
    assert code == 0 and "no rFID: the Inception network is not on this machine" in said
    assert [line.split()[0] for line in shown.splitlines()[1:4]] == ["rFID", "PSNR", "SSIM"]
    assert "use of the 128 codes" in shown and "perplexity" in shown


def test_continuous_tokens_have_no_codes(measure):
    part = TransformerConfig(width=64, depth=1, heads=1)
    shape = {"num_tokens": 16, "code_channels": 3, "patch": 4, "side": 4, "encoder": part, "decoder": part}
    vae = TiTok(TiTokConfig(**shape, l2_norm=False, vocab_size=0))
    save_tokenizer(vae, Path("vae.safetensors"), family="titok", preprocess="fit")
    code, shown, _ = measure("--tokenizer", "vae.safetensors", "--limit", "4", "--json")
    assert code == 0 and json.loads(shown)["codes"] == []
    code, shown, _ = measure("--tokenizer", "vae.safetensors", "--limit", "4")
    assert code == 0 and "codes" not in shown


def test_few_images_need_an_option_for_rfid(measure, monkeypatch):
    Path("weights.pth").write_bytes(b"weights")
    code, _, said = measure("--inception", "weights.pth")
    assert code == 2 and "img: 12 images" in said and "--allow-few" in said
    monkeypatch.setattr(protocol, "find_weights", lambda given: Path("weights.pth"))  # as if it was downloaded
    code, shown, said = measure("--json")
    assert code == 0 and json.loads(shown)["rfid"] is None
    assert "no rFID: 12 images, and it takes 50,000 (--allow-few)" in said


def test_unreadable_images_are_left_out(measure, img):
    (img / "03.png").write_text("no picture")
    code, shown, said = measure("--json", "--out", "again")
    assert code == 3 and json.loads(shown)["images"] == 11 and "left out 03.png" in said
    assert len(list(Path("again").iterdir())) == 11


def test_nothing_is_written_where_something_is_or_nothing_can_be_read(measure, img):
    code, _, said = measure("--out", "img")
    assert code == 2 and "'img' exists" in said
    for file in img.iterdir():
        file.write_text("no picture")
    code, _, said = measure("--out", "again")
    assert code == 1 and "none of the 12 images" in said and not Path("again").exists()
    code, _, said = measure("--preprocess", "sideways")
    assert code == 2 and "unknown preprocessing" in said


def test_processes_on_devices_measure_the_same_and_keep_it(measure, monkeypatch):
    monkeypatch.setattr(reconstruction, "BATCHES", 2)
    options = ["--batch-size", "2", "--workers", "0", "--json"]
    whole = json.loads(measure(*options)[1])
    code, shown, said = measure(*options, "--features", "kept", "--devices", "cpu:2")
    assert code == 0 and json.loads(shown) == whole and "reconstructing: 12 images" in said
    assert len(list(Path("kept").glob("*.npz"))) == 3
    monkeypatch.setattr(Reconstructor, "run", None)  # nothing is computed again
    assert json.loads(measure(*options, "--features", "kept")[1]) == whole
    code, _, said = measure("--batch-size", "3", "--features", "kept")
    assert code == 2 and "'kept' holds reconstructions of something else" in said and "batch_size: 2 there" in said


def test_other_processes_need_a_folder(measure):
    for options in (["--devices", "cpu:2"], ["--engine", "ray"]):
        code, _, said = measure(*options)
        assert code == 2 and f"{options[0] if 'ray' not in options else '--engine ray'} needs a folder" in said
        assert "add --features FOLDER" in said


def test_pictures_of_another_run_are_not_taken_for_these(measure, img):
    Path("again").mkdir()
    for number in range(12):
        (Path("again") / f"{number:06d}.png").write_bytes((img / f"{number:02d}.png").read_bytes())
    assert measure("--out", "again", "--features", "kept")[0] == 2
    assert measure("--out", "other", "--features", "kept")[0] == 0
    code, _, said = measure("--out", "again", "--features", "kept")
    assert code == 2 and "'again' exists" in said and "it holds other pictures" in said
    assert (Path("again") / "000000.png").read_bytes() == (img / "00.png").read_bytes()
    assert measure("--out", "other", "--features", "kept")[0] == 0, "which a kill may have left so"


def test_an_evaluation_that_is_killed_at_any_step_is_continued(tmp_path):
    done = run("kill_evaluating", tmp_path)
    assert done.returncode == 0, done.stderr
