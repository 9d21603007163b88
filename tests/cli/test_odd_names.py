"""Names of files and classes that are not UTF-8, or hold line breaks, terminal commands and markup, in every output."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest

import avarc_cli
from avarc_cli import names
from avarc_cli.cli import main

DIGITS = Path(avarc_cli.__file__).parent / "assets" / "digits" / "test"
ODD = [
    "a\nb.png",
    "a\rb.png",
    "a\tb.png",
    "a\u2028b.png",
    "a\u0085b.png",
    "\x1b[31mred\x1b]0;title\x07.png",
    "\u202egnp.png",
    "caf\udce9.png",
    "caf\\udce9.png",
    "caf\u00e9.png",
    "<script>alert(1)</script>.png".replace("/", "\u2215"),
    "\x01\x08]]>&amp;.png",
]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one digit of each odd name, in a class folder of an odd name, and a run of them."""
    folder = tmp_path_factory.mktemp("odd")
    images = folder / "images" / "thr\udcffee\n"
    images.mkdir(parents=True)
    for source, name in zip(sorted(DIGITS.glob("3/*")), ODD, strict=False):
        shutil.copyfile(source, images / name)
    words = ["classify", str(folder / "images"), "--workers", "0", "--out", str(folder / "run")]
    assert main([*words, "--save-json", "--save-likelihood"]) == 0
    return folder


@pytest.fixture(scope="module")
def expected():
    return sorted(f"thr\udcffee\n/{name}" for name in ODD)


@pytest.mark.parametrize("command", ["classify", "data check", "encode", "cache head", "explain"])
@pytest.mark.parametrize("mode", ["--human", "--quiet", "--json"])
def test_no_name_reaches_the_terminal_as_a_command_or_makes_a_line(folder, expected, tmp_path, command, mode, capsys):
    shutil.copyfile(folder / "run" / "tokens.h5", tmp_path / "t.h5")
    arguments = {
        "classify": ["--workers", "0"],
        "encode": ["--workers", "0", "--out", str(tmp_path / "e\n.h5")],
        "explain": ["--workers", "0", "--out", str(tmp_path / "x.html")],
        "cache head": ["--rows", "99"],
    }.get(command, [])
    data = tmp_path / "t.h5" if command == "cache head" else folder / "images"
    assert main([*([] if mode == "--human" else [mode]), *command.split(), str(data), *arguments]) in (0, 1)
    out, err = capsys.readouterr()
    assert not CONTROL.search(out + err)
    if mode == "--json":
        json.dumps(json.loads(out), ensure_ascii=False).encode()
    if mode == "--quiet" and command == "classify":
        listed = [line.rsplit("\t", 1)[0] for line in out.removesuffix("\n").split("\n")]
        assert sorted(map(names.from_text, listed)) == expected
    if mode == "--quiet" and command == "cache head":
        assert sorted(names.from_text(line) for line in out.splitlines()) == expected


def test_records_are_one_line_each_and_hold_names_that_come_back(folder, expected):
    lines = (folder / "run" / "predictions.jsonl").read_bytes().decode("utf-8").splitlines()
    paths = [json.loads(line)["path"] for line in lines]
    assert sorted(map(names.from_text, paths)) == expected
    for file in (folder / "run").rglob("*.json"):
        json.dumps(json.loads(file.read_bytes()), ensure_ascii=False).encode()


def test_a_run_with_odd_names_continues(folder, capsys):
    words = ["classify", str(folder / "images"), "--workers", "0", "--out", str(folder / "run")]
    assert main([*words, "--save-json", "--save-likelihood"]) == 0
    assert "another run" not in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".parquet", ""])
def test_exports_hold_names_that_come_back(folder, expected, tmp_path, suffix):
    out = tmp_path / f"e{suffix}"
    assert main(["export", str(folder / "run"), "--out", str(out)]) == 0
    if suffix == ".npz":
        paths = np.load(out)["path"].tolist()
    elif suffix == ".h5":
        with h5py.File(out) as file:
            paths = file["path"].asstr()[:].tolist()
    elif suffix == ".parquet":
        paths = pytest.importorskip("pyarrow.parquet").read_table(out)["path"].to_pylist()
    else:
        paths = [str(np.load(file)["path"]) for file in out.iterdir()]
    assert sorted(map(names.from_text, paths)) == expected


class Texts(HTMLParser):
    """The texts of a page, and the elements that only a name could have made."""

    def __init__(self):
        super().__init__()
        self.texts, self.scripts = [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("kind", ["explain", "report"])
def test_pages_show_every_name_as_text(folder, expected, tmp_path, kind):
    page = tmp_path / "page.html"
    data = folder / "images" if kind == "explain" else folder / "run"
    options = ["--workers", "0"] if kind == "explain" else ["--hardest", "99"]
    assert main([kind, str(data), *options, "--out", str(page)]) == 0
    parser = Texts()
    text = page.read_bytes().decode("utf-8")
    parser.feed(text)
    assert not CONTROL.search(text)
    assert parser.scripts <= 1
    assert set(expected) <= set(map(names.from_text, parser.texts))


def test_a_picture_with_odd_names_is_well_formed(folder, tmp_path):
    assert main(["explain", str(folder / "images"), "--workers", "0", "--out", str(tmp_path / "x.svg")]) == 0
    ElementTree.parse(tmp_path / "x.svg")


def test_arrays_of_explanations_hold_names_that_come_back(folder, expected, tmp_path):
    words = ["explain", str(folder / "images"), "--workers", "0", "--limit", "99", "--out", str(tmp_path / "x.html")]
    assert main([*words, "--npz", str(tmp_path / "x.npz")]) == 0
    assert sorted(map(names.from_text, np.load(tmp_path / "x.npz")["path"].tolist())) == expected


def test_a_checkpoint_of_odd_classes_keeps_their_names(folder, tmp_path):
    weights = tmp_path / "var.safetensors"
    words = ["train", "var", str(folder / "images"), "--tokenizer", "digits-vqvae", "--out", str(weights)]
    assert main([*words, "--depth", "1", "--width", "64", "--steps", "1", "--batch-size", "1"]) == 0
    run, model = tmp_path / "run", ["--model", str(weights), "--tokenizer", "digits-vqvae"]
    assert main(["classify", str(folder / "images"), *model, "--workers", "0", "--out", str(run)]) == 0
    recorded = names.from_json((run / "run.json").read_bytes())
    assert os.fsencode(recorded["candidate_names"][0]) == b"thr\xffee\n"
