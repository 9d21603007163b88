"""Trainings that are killed (SIGKILL) go on to the same bits; what was saved stays when nothing can be written."""

import json
import subprocess

import pytest
import torch
from programs import run, start
from small_datasets import halves

from avarc_cli.cli import main

CODES = "--image-size 8 --vocab 16 --channels 4 --width 32 --multipliers 1,1 --blocks 1".split()
SCALES = [*CODES, "--patch-nums", "1,2,4"]
TITOK = "--image-size 8 --patch 2 --tokens 4 --vocab 16 --channels 4 --width 64 --depth 1".split()
HOW = "--steps 4 --batch-size 4 --lr 1e-3 --augment affine --flip --save-every 2".split()
SMALL = ["--depth", "2", "--width", "64", *HOW]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images in img/ and two tokenizers."""
    folder = tmp_path_factory.mktemp("killed")
    images = str(halves(folder / "img"))
    for command, shape in {"vq": CODES, "titok": TITOK}.items():
        assert main(["train", command, images, *shape, "--steps", "1", "--out", str(folder / f"{command}.st")]) == 0
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    """How all trainings ended: each without a kill to NAME.whole, and killed and continued to NAME.cut."""
    images = str(folder / "img")
    trainings = {
        "tokenizer": ["tokenizer", images, *SCALES, *HOW, "--reanchor", "--hold-out", "0.25", "--validate-every", "1"],
        "discriminator": ["vq", images, *CODES, *HOW, "--adversarial"],
        "llamagen": ["llamagen", images, "--tokenizer", str(folder / "vq.st"), *SMALL],
        "maskgit": ["maskgit", images, "--tokenizer", str(folder / "titok.st"), *SMALL],
    }
    kills = {"tokenizer": "write 2", "discriminator": "step 3", "llamagen": "step 3", "maskgit": "step 1"}
    runs, names = [], []
    for name, words in trainings.items():
        whole, cut = str(folder / f"{name}.whole"), str(folder / f"{name}.cut")
        runs += [["", "train", *words, "--out", whole], [kills[name], "train", *words, "--out", cut]]
        runs += [["", "train", *words, "--out", cut]]
        names += [name] * 3
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    out, err = start("train_and_die", **pipes).communicate(json.dumps(runs))
    codes = [int(line) for line in out.splitlines() if line.lstrip("-").isdecimal()]
    assert len(codes) == len(runs), err
    return {name: codes[3 * i : 3 * i + 3] for i, name in enumerate(trainings)}


@pytest.mark.parametrize("name", ["tokenizer", "discriminator", "llamagen", "maskgit"])
def test_a_killed_training_goes_on_to_the_same_bits(folder, ended, name):
    assert ended[name] == [0, -9, 0]
    assert (folder / f"{name}.cut").read_bytes() == (folder / f"{name}.whole").read_bytes()
    assert sorted(path.name for path in folder.glob(f"{name}.*")) == [f"{name}.cut", f"{name}.whole"]


def test_a_full_disk_is_one_message_and_keeps_the_last_checkpoint(folder, tmp_path):
    """RLIMIT_FSIZE stands in for the full disk. A checkpoint has four weights, from the first validation on five."""
    words = ["train", "llamagen", str(folder / "img"), "--tokenizer", str(folder / "vq.st"), "--depth", "2", *HOW]
    words += ["--width", "128"]
    assert main([*words, "--steps", "1", "--out", str(folder / "size.st")]) == 0
    limit = int(4.5 * (folder / "size.st").stat().st_size)
    words += ["--steps", "6", "--hold-out", "0.25", "--validate-every", "3", "--out", str(tmp_path / "x")]
    done = run("small_disk", limit, *words)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "cannot write the checkpoint of step 4" in done.stderr and "the one before is still there" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["step"] == 2


def test_divergence_names_step_and_checkpoint_and_other_options_are_refused(folder, tmp_path, capsys):
    words = ["train", "llamagen", str(folder / "img"), "--tokenizer", str(folder / "vq.st"), *SMALL]
    words += ["--save-every", "1", "--out", str(tmp_path / "x")]
    assert main([*words, "--lr", "1e30"]) == 1
    said = capsys.readouterr().err
    assert "at step" in said and f"the last good checkpoint is '{tmp_path / 'x.ckpt'}'" in said.replace("\n", " ")
    assert main([*words, "--lr", "1e-3"]) == 1
    assert "lr: 1e+30 there, 0.001 here" in capsys.readouterr().err


def test_trained_weights_are_replaced_only_if_asked(folder, tmp_path, capsys):
    before = (folder / "vq.st").read_bytes()
    words = ["train", "vq", str(folder / "img"), *CODES, *HOW, "--steps", "1", "--out", str(folder / "vq.st")]
    assert main(words) == 2 and "--overwrite" in capsys.readouterr().err
    assert (folder / "vq.st").read_bytes() == before and not (folder / "vq.st.ckpt").exists()
