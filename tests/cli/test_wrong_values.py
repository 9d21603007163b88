"""Values that no model and no data could make sense of: told at once, without waiting for torch."""

import json
import subprocess
from pathlib import Path

import programs
import pytest
from PIL import Image

from avarc_cli.cli import main

LONG = "9" * 5000  # more digits than Python converts
OF_CLASSIFY = {
    "--plan": ["nonsense", "5:0", "nowhere.json", LONG],
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
    "--lora": ["nowhere"],
    "--priors": ["nowhere"],
    "--class-names": ["nowhere", "/dev/zero"],
    "--model-config": ["nowhere"],
    "--subset": ["nowhere"],
    "--limit": ["0"],
    "--per-class": ["0"],
    "--workers": ["-1"],
}
OTHERS = [
    "classify nowhere",
    "encode images --out none/t.h5",
    "encode images --out t.h5 --engine x",
    "encode images --out t.h5 --shard x",
    "encode images --out t.h5 --precision x",
    "encode images --out t.h5 --patch-nums 1,x",
    "encode images --out t.h5 --batch-size 0",
    "encode images --out t.h5 --ten-crop --flip",
    "encode images --out t.h5 --ten-crop --crop-range nan",
    "encode images --out t.h5 --ten-crop --preprocess none",
    "encode images --out t.h5 --flip --samples 2",
    "tune nowhere --out p.json",
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
    "add-class z images --bank b --method x",
    "add-class z images --bank b --augment x",
    "add-class z images --bank b --lr nan",
    "add-class z nowhere --bank b",
    "incremental images --base 0 --tasks 1 --out o --baseline x",
    "incremental images --base 0 --tasks 1 --out o --base-width 65",
    "bench --plan x",
    "bench --precision fp32,x",
    "bench --scales x",
    "train var images --out x.st --tokenizer x",
    "train var images --out x.st --tokenizer digits-vqvae --lr 0",
    "train var nowhere --out x.st --tokenizer digits-vqvae",
    "train tokenizer images --out x.st --augment x",
    "train cca images --out x.st --beta -1",
    "cache info nowhere",
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
    "data check nowhere",
    "data check images --decode x",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with images/0.png."""
    (tmp_path / "images").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "images" / "0.png")
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
