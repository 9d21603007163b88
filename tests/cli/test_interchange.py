"""avarc cache import and export, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from interchange_files import write_json_lines, write_llamagen

from avarc_cli.cli import main
from avarc_cli.tokens import read
from avarc_cli.tokens.interchange.exporting import FOLDERS, FORMATS
from avarc_cli.zoo.local_files import ASSETS

ROOT = Path(__file__).resolve().parents[2]
L = 103  # tokens of a digit


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


def predictions(run):
    records = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    return [(record["prediction_id"], record["label_id"]) for record in records]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A cache of three images each of 3, 4 and 5, and the run that classified it."""
    folder = tmp_path_factory.mktemp("digits")
    for digit in "345":
        for image in sorted((ASSETS / "digits" / "test" / digit).iterdir())[:3]:
            (folder / "images" / digit).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder / "images" / digit)
    assert avarc("-q", "encode", folder / "images", "--workers", "0", "--out", folder / "t.h5") == 0
    assert avarc("-q", "classify", folder / "t.h5", "--out", folder / "run") == 0
    return folder


@pytest.mark.parametrize("kind", FORMATS)
def test_an_exported_cache_is_imported_and_classified_the_same(kind, digits, tmp_path):
    out = tmp_path / ("codes" if kind in FOLDERS else f"codes.{kind}")
    assert avarc("-q", "cache", "export", digits / "t.h5", "--format", kind, "--out", out) == 0
    cache = tmp_path / "t.h5"
    assert avarc("-q", "cache", "import", out, "--tokenizer", "digits-vqvae", "--out", cache) == 0
    assert np.array_equal(read(cache).tokens(range(9)), read(digits / "t.h5").tokens(range(9)))
    if kind in ("llamagen", "jsonl"):
        assert avarc("-q", "classify", cache, "--out", tmp_path / "run") == 0
        assert predictions(tmp_path / "run") == predictions(digits / "run")


def test_an_imported_cache_serves_every_command(digits, tmp_path, capsys):
    views = np.stack([read(digits / "t.h5").tokens(range(9))[:, 0]] * 3, axis=1)
    labels = np.repeat([3, 4, 5], 3)
    source, cache = write_llamagen(tmp_path / "codes", views, labels, 16), tmp_path / "t.h5"
    assert avarc("-q", "cache", "import", source, "--tokenizer", "digits", "--out", cache) == 0
    capsys.readouterr()
    assert avarc("--json", "cache", "info", cache) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["views"], facts["preprocess"], facts["samples"]) == ("imported", "unknown", 3)
    assert avarc("-q", "cache", "verify", cache) == 0
    assert avarc("-q", "cache", "head", cache, "--picture", tmp_path / "head.png") == 0
    assert avarc("-q", "classify", cache, "--plan", "exhaustive:3", "--out", tmp_path / "run") == 0
    assert predictions(tmp_path / "run") == predictions(digits / "run")
    assert avarc("-q", "explain", cache, "--limit", "1", "--out", tmp_path / "x.png") == 0
    assert avarc("-q", "report", tmp_path / "run", "--tokens", cache, "--hardest", "1") == 0
    lines = write_json_lines(tmp_path / "more.jsonl", views, labels)
    more = [lines, "--views", "3", "--tokenizer", "digits", "--out", tmp_path / "more.h5"]
    assert avarc("-q", "cache", "import", *more) == 0
    assert avarc("-q", "cache", "merge", cache, tmp_path / "more.h5", "--out", tmp_path / "both.h5") == 0
    assert len(read(tmp_path / "both.h5")) == 18


def test_imagenets_classes_and_names_of_a_file(tmp_path, capsys):
    source = write_json_lines(tmp_path / "c.jsonl", np.zeros((3, 1, L), dtype=int), np.array([1, 0, -1]))
    words = ["-q", "cache", "import", source, "--tokenizer", "digits-vqvae", "--out"]
    assert avarc(*words, tmp_path / "a.h5", "--dataset", "imagenet-train") == 0
    assert read(tmp_path / "a.h5").header.class_names[1] == "n01443537"
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert avarc(*words, tmp_path / "b.h5", "--class-names", tmp_path / "names.txt") == 0
    assert read(tmp_path / "b.h5").header.class_names == ("cat", "dog")
    both = ["--class-names", tmp_path / "names.txt", "--dataset", "imagenet-val"]
    assert avarc(*words, tmp_path / "c.h5", *both) == 2
    assert "exclude each other" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("cat\n")
    assert avarc(*words, tmp_path / "c.h5", "--class-names", tmp_path / "names.txt") == 1
    assert "c.jsonl:1' names class 1" in capsys.readouterr().err


def test_wrong_tokens_are_one_error_and_no_cache_is_replaced(digits, tmp_path, capsys):
    tokens = np.zeros((3, 1, L), dtype=int)
    tokens[1, 0, 7] = 128
    source = write_json_lines(tmp_path / "c.jsonl", tokens, np.zeros(3))
    words = ["cache", "import", source, "--tokenizer", "digits-vqvae", "--out"]
    assert avarc(*words, tmp_path / "t.h5") == 1
    message = capsys.readouterr().err
    assert "c.jsonl:2'" in message and "token 128, at position 7, is outside of the vocabulary of 128" in message
    assert not (tmp_path / "t.h5").exists()
    shutil.copy(digits / "t.h5", tmp_path / "t.h5")
    assert avarc(*words, tmp_path / "t.h5") == 1
    assert "'t.h5' exists" in capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert (tmp_path / "t.h5").read_bytes() == (digits / "t.h5").read_bytes()
    assert avarc(*words, source) == 2
    assert "this command reads it" in capsys.readouterr().err


def test_llamagens_codes_are_classified_by_its_generators(tmp_path, capsys):
    for folder, file, name in (("vq", "vq_ds16_c2i.pt", "llamagen_vq_tiny"), ("gpt", "c2i_B.pt", "llamagen_gpt_tiny")):
        meta, _ = fill.load_golden(GOLDEN / f"{name}.npz")
        filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
        (tmp_path / folder).mkdir()
        torch.save({"model": {key: torch.from_numpy(value) for key, value in filled.items()}}, tmp_path / folder / file)
        (tmp_path / folder / "config.json").write_text(json.dumps(meta["config"]))
    vq = tmp_path / "vq" / "vq_ds16_c2i.pt"
    tokens = np.random.default_rng(0).integers(0, 16, (4, 10, 16))
    source = write_llamagen(tmp_path / "codes", tokens, np.arange(4), 64)
    words = ["-q", "cache", "import", source, "--tokenizer", vq, "--out", tmp_path / "t.h5"]
    assert avarc(*words) == 0
    models = ["--model", tmp_path / "gpt" / "c2i_B.pt", "--tokenizer", vq]
    run = ["--plan", "exhaustive:10", "--out", tmp_path / "run"]
    assert avarc("-q", "classify", tmp_path / "t.h5", *models, *run) == 0
    assert [label for _, label in predictions(tmp_path / "run")] == ["0", "1", "2", "3"]
    assert avarc(*words, "--image-size", "32", "--overwrite") == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "has 16 tokens an image" in message and "gives 4 (2x2 grid) for 32 pixels" in message


def test_tokens_of_an_image_size_that_the_tokenizer_does_not_have_are_refused(tmp_path, capsys):
    source = write_llamagen(tmp_path / "codes", np.zeros((2, 2, 64), dtype=int), np.zeros(2, dtype=int))
    assert avarc("cache", "import", source, "--tokenizer", "digits-vqvae", "--out", tmp_path / "t.h5") == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "imagenet8_codes/0.npy' has 64 tokens an image" in message and "digits-vqvae gives 103" in message
