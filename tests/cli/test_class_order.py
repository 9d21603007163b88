"""A model whose classes nothing names, and folders called after numbers: which folder is which class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from avarc_cli.cli import main

PREDICTED = {"000.png": 8, "001.png": 3}  # classes of the golden images by the reference


@pytest.fixture(scope="module")
def twelve(tiny, tiny_files, tmp_path_factory) -> tuple[list[str], Path]:
    """Options that name a VAR of 12 classes, and its images in folders that torchvision numbers by sorted text."""
    root = tmp_path_factory.mktemp("twelve")
    tensors = dict(tiny.tensors("var"))
    rows = tensors["class_emb.weight"]
    tensors["class_emb.weight"] = torch.cat([rows[:10], -3 * rows[:2], rows[10:]])
    torch.save(tensors, root / "VAR.pth")
    by_text = sorted(map(str, range(12)))
    for folder in by_text:
        (root / "img" / folder).mkdir(parents=True)
    for image, class_id in PREDICTED.items():
        (root / "img" / by_text[class_id] / image).write_bytes((tiny_files / "img" / image).read_bytes())
    models = ["--model", str(root / "VAR.pth"), "--tokenizer", str(tiny_files / "VAE.pth")]
    return models, root / "img"


def classify(twelve, out: Path, *options: str) -> float:
    models, images = twelve
    words = ["classify", str(images), *models, "--preprocess", "none", "--out", str(out), *options]
    assert main(words) == 0
    accuracy: float = json.loads((out / "metrics.json").read_text())["accuracy"]
    return accuracy


def test_numbers_are_ids_and_a_note_offers_the_order_of_text(twelve, tmp_path, capsys):
    assert classify(twelve, tmp_path / "run") == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "numbers that class folders are called after are taken for its class ids" in message
    assert "add --class-order text" in message


@pytest.mark.parametrize("options", [["--class-order", "text"], ["--class-names", "{images}"]])
def test_either_way_of_saying_the_order_of_text_labels_the_images_rightly(twelve, tmp_path, options):
    given = [option.format(images=twelve[1]) for option in options]
    assert classify(twelve, tmp_path / "run", *given) == 1


def test_a_run_does_not_go_on_in_another_order(twelve, tmp_path, capsys):
    classify(twelve, tmp_path / "run", "--class-order", "text")
    protocol = json.loads((tmp_path / "run/run.json").read_text())
    assert protocol["label_space"] == "class numbers sorted as text"
    models, images = twelve
    words = ["classify", str(images), *models, "--preprocess", "none", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "holds another run" in message and "candidate_ids" in message


def test_explain_says_how_numbers_were_taken(twelve, tmp_path, capsys):
    models, images = twelve
    words = ["explain", str(images), *models, "--preprocess", "none", "--out", str(tmp_path / "x.png")]
    assert main([*words, "--class-order", "text"]) == 0
    assert "in the order of their names as text" in " ".join(capsys.readouterr().err.split())


def test_an_order_for_a_model_with_class_names_is_refused(tmp_path, twelve, capsys):
    assert main(["classify", str(twelve[1]), "--model", "digits", "--class-order", "text"]) == 2
    assert "no use for --class-order" in capsys.readouterr().err
