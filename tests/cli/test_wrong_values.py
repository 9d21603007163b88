"""Values that no model and no data could make sense of: refused at once, without waiting for torch."""

import json
import subprocess
from pathlib import Path

import numpy as np
import programs
import pytest
from PIL import Image
from safetensors.numpy import save_file

from avarc_cli.cli import main

LONG = "9" * 5000  # more digits than Python converts
OF_CLASSIFY = {
    "--plan": ["nonsense", "5:0", "nowhere.json", LONG],
    "--classes": ["nonsense", "3,nowhere.txt", "empty.txt", "bytes.txt"],
    "--score": ["nonsense"],
    "--memory": ["5", "nan", "-1GiB"],
    "--batch-size": ["0", "x", LONG],
    "--precision": ["fp5", ""],
    "--device": ["gpu", "cuda:x"],
    "--kernels": ["nonsense"],
    "--preprocess": ["nonsense"],
    "--dataset": ["nonsense"],
    "--sigma": ["nan", "-1"],
    "--crop-range": ["1.1"],
    "--model": ["nonsense", "nowhere.pth"],
    "--tokenizer": ["nonsense", "nowhere.pth"],
    "--bank": ["nowhere"],
    "--lora": ["nowhere", "images"],
    "--lora-alpha": ["nan"],
    "--out": ["images", "empty.txt"],
    "--priors": ["nowhere", "empty.txt", "bytes.txt"],
    "--class-names": ["nowhere", "/dev/zero", "bytes.txt"],
    "--class-order": ["nonsense", "text"],
    "--model-config": ["nowhere", "images"],
    "--subset": ["nowhere", ""],
    "--limit": ["0"],
    "--sample": ["0", "x"],
    "--per-class": ["0"],
    "--workers": ["-1"],
}
TRAININGS = ("tokenizer images", "var images --tokenizer digits-vqvae", "cca images")
OTHERS = [
    "classify nowhere",
    "train classifier images --out m --time 0",
    "train classifier images --out m --hold-out 1",
    "train classifier images --out m --image-size 17",
    "train classifier images --out m --augment x",
    "train classifier images --out m --device x",
    "train classifier images --out none/m",
    "classify images --model images",
    "encode images --out none/t.h5",
    "encode images --out t.h5 --engine x",
    "encode images --out t.h5 --devices x",
    "encode images --out t.h5 --devices cpu:0",
    "encode images --out t.h5 --devices cpu:2 --device cpu",
    "encode images --out t.h5 --devices cpu:2 --engine ray",
    "encode images --out t.h5 --samples 0",
    "encode images --out t.h5 --shard x",
    "encode images --out t.h5 --precision x",
    "encode images --out t.h5 --patch-nums 1,x",
    "encode images --out t.h5 --batch-size 0",
    "encode images --out t.h5 --ten-crop --flip",
    "encode images --out t.h5 --ten-crop --crop-range nan",
    "encode images --out t.h5 --ten-crop --preprocess none",
    "encode images --out t.h5 --flip --samples 2",
    "tune nowhere --out p.json",
    "classify images --classes 0,1 --plan 3:3,5:1",
    "classify images --model var-d16 --classes 1000",
    "classify images --model tiny.safetensors --tokenizer digits-vqvae --classes cat,bird",
    "explain images --classes bytes.txt",
    "explain images --class nonsense",
    "explain images --vs 0,1",
    "explain images --plan x",
    "explain images --only x",
    "explain images --ten-crop --flip",
    "explain images --weighting x",
    "explain images --upsample x",
    "explain images --scales x",
    "explain images --rows x",
    "explain images --rows 9",
    "explain images --limit 0",
    "explain images --out x.txt",
    "report nowhere",
    "export nowhere --out x.npz",
    "export nowhere --out x.txt",
    "sample 3 --out x.txt",
    "sample 3 --out x.png --top-p 3",
    "sample 3 nonsense --out x.png",
    "sample 3 --out images",
    "sample 3 --out x --shard x",
    "sample 3 --out x --devices x",
    "sample 3 --out x.png --engine ray",
    "sample empty.txt --out x.png",
    "sample tench nowhere.txt --out x.png --model var-d16",
    "add-class z images --bank b --method x",
    "add-class z images --bank b --augment x",
    "add-class z images --bank b --lr nan",
    "add-class z nowhere --bank b",
    "add-class 3 images --bank b",
    "add-class a,b images --bank b",
    "add-class z images --bank images",
    "add-class images --bank b",
    "incremental images --base 0 --tasks 1 --out o --baseline x",
    "incremental images --base 0 --tasks 1 --out o --base-width 65",
    "incremental images --base a --tasks b --out images",
    "incremental digits --base 0-4 --tasks 5-12 --out o",
    "incremental digits --base 0-4 --tasks 5 --test nowhere --out o",
    "bench --shape x",
    "bench --shape d16:2",
    "bench --shape 1:250:4",
    "bench --shape llamagen-x",
    "bench --shape llamagen-1:6:2",
    "bench --shape llamagen-l --scales 1,2",
    "bench --shape llamagen-t2i-l",
    "bench --shape x-d16",
    "bench --picture x.txt",
    "bench --picture images",
    "bench --plan paper --classes 5",
    "bench --plan x",
    "bench --precision fp32,x",
    "bench --scales x",
    *(f"train {what} --out {out}" for what in TRAININGS for out in ("none/x.st", "images", "empty.txt")),
    "train cca images --out images --rank 2",
    "train cca images --out none/adapter --rank 2",
    "train tokenizer images --out x.st --patch-nums 1,2",
    "train tokenizer images --out x.st --image-size 64 --width 48",
    "train var images --out x.st --tokenizer digits-vqvae --width 100",
    "train var images --out x.st --tokenizer x",
    "train var images --out x.st --tokenizer digits-vqvae --lr 0",
    "train var nowhere --out x.st --tokenizer digits-vqvae",
    "train tokenizer images --out x.st --augment x",
    "train cca images --out x.st --beta -1",
    "cache info nowhere",
    "classes remove x --bank nowhere",
    "classes rename x y --bank nowhere",
    "cache merge nowhere --out m.h5",
    "cache import nowhere --tokenizer digits-vqvae --out t.h5",
    "cache import images --tokenizer digits-vqvae --out t.h5",
    "cache import images/0.png --tokenizer digits-vqvae --out t.h5",
    "cache export nowhere --out x.npz",
    "cache export nowhere --out x",
    "cache export nowhere --out x --format x",
    "classes list --bank nowhere",
    "models show x",
    "models add m nowhere",
    "download x",
    "demo --out images",
    "demo --out empty.txt",
    "data check nowhere",
    "data check images --decode x",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with images/0.png, lists of classes, and weights that name their classes."""
    (tmp_path / "images").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "images" / "0.png")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bytes.txt").write_bytes(b"\x80\x81")
    weights = {"class_emb.weight": np.zeros((3, 4), np.float32)}
    save_file(weights, tmp_path / "tiny.safetensors", {"class_names": json.dumps(["cat", "dog"])})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_wrong_values_are_errors_before_torch_is_imported(folder):
    lines = [["classify", "images", option, value] for option, values in OF_CLASSIFY.items() for value in values]
    lines += [line.split() for line in OTHERS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = programs.start("wrong_values", **pipes)
    out, err = process.communicate(json.dumps(lines))
    assert process.returncode == 0, err
    wrong = [line for line, (code, torch) in zip(lines, json.loads(out), strict=True) if code not in (1, 2) or torch]
    assert not wrong
    assert "bug in avarc" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["encode", "images", "--out", "t.h5", "--shard", f"{LONG}/{LONG}"],
        ["data", "check", "images", "--decode", LONG],
        ["explain", "images", "--rows", LONG],
        ["bench", "--shape", f"d{LONG}"],
        ["bench", "--shape", f"llamagen-{LONG}:1:1"],
        ["bench", "--scales", LONG],
        ["sample", LONG, "--out", "s.png"],
    ],
    ids=lambda words: words[0],
)
def test_numbers_of_thousands_of_digits_are_wrong_values(folder, words, capsys):
    assert main(words) == 2
    assert "bug" not in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "..", "/", "/dev/null", "", " ", "a\0b", "loop", "n" * 300])
@pytest.mark.parametrize(
    "command", ["cache info", "cache verify", "cache head", "tune", "report", "data check", "classes list --bank"]
)
def test_an_input_that_is_none_is_one_error(folder, name, command, capsys):
    Path("loop").symlink_to("loop")
    code = main([*command.split(), name])
    err = capsys.readouterr().err
    assert code in ((0, 1, 2, 3) if command == "data check" else (1, 2))
    assert "bug in avarc" not in err
