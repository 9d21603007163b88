"""`avarc demo`: every plan on the included model and its held-out digits."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from doc_blocks import avarc_words, command_lines, executed_by
from PIL import Image
from terminal import too_long

from avarc_cli.cli import main

TOKENS = {"digits-llamagen": 640, "digits-titok": 160, "digits-captions": 640}
"""Of exhaustive scoring."""
DOCUMENTED = [words for block in executed_by("test_demo.py") for words in command_lines(block.text)]
OTHERS = [words for words in DOCUMENTED if words != ["avarc", "demo"]]


@pytest.fixture
def fewer_images(monkeypatch):
    """Five of each class; .ci/check-wheel runs the whole demo."""
    datasets = importlib.import_module("avarc_cli.data.datasets")  # the package has a function of this name
    whole = datasets.open_images

    def some(inputs):
        images = whole(inputs)
        return images.select(None, 5, None) if len(images) == 360 else images

    monkeypatch.setattr(datasets, "open_images", some)


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_images")
def test_the_demo_reports_what_it_measured(tmp_path, monkeypatch, capsys):
    assert ["avarc", "demo"] in DOCUMENTED
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    exhaustive, staged, paper, adaptive = shown["plans"].values()
    assert list(shown["plans"]) == ["exhaustive", "staged", "paper-style", "adaptive"]
    assert exhaustive["accuracy"] >= 0.98 and exhaustive["agreement_with_exhaustive"] == 1.0
    assert exhaustive["tokens_scored_per_image"] == 1030
    assert staged["tokens_scored_per_image"] < paper["tokens_scored_per_image"] < 1030
    assert min(staged["agreement_with_exhaustive"], paper["agreement_with_exhaustive"]) > 0.95
    assert adaptive["agreement_with_exhaustive"] >= 0.995 and adaptive["tokens_scored_per_image"] <= 0.35 * 1030
    unseen = shown["adaptive_on_unseen"]
    assert unseen["images"] == 15 and unseen["agreement"] >= 0.995 and unseen["share_of_exhaustive"] <= 0.35
    picture = np.asarray(Image.open(Path(shown["picture"])))
    assert picture.std() > 10
    assert main(["--json", "demo", "--out", "avarc-demo"]) == 0, "a second time, from what is there"
    assert json.loads(capsys.readouterr().out) == shown
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["demo"]) == 0
    printed = capsys.readouterr()
    (row,) = [line for line in printed.out.splitlines() if line.split()[:1] == ["exhaustive"]]
    assert f"{exhaustive['accuracy']:.2%}" in row and not too_long(printed.out + printed.err, 80)
    records = (tmp_path / "avarc-demo" / "exhaustive" / "predictions.jsonl").read_text().splitlines()
    assert len(records) == 50


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_images")
@pytest.mark.parametrize("words", [*OTHERS, ["avarc", "demo", "--model", "digits-titok"]], ids=" ".join)
def test_the_demo_shows_the_other_included_models(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main([*avarc_words(words), "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert plans["exhaustive"]["accuracy"] >= 0.96
    assert plans["exhaustive"]["tokens_scored_per_image"] == TOKENS[words[-1]]
    assert plans["staged"]["tokens_scored_per_image"] < plans["paper-style"]["tokens_scored_per_image"]
    assert plans["adaptive"]["agreement_with_exhaustive"] >= 0.99
    assert (tmp_path / f"avarc-demo-{words[-1]}" / "digits.png").exists()


def test_a_model_without_a_demo_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--model", "var-d16"]) == 2
    err = capsys.readouterr().err
    assert (
        "the demo cannot show 'var-d16'" in err and "digits, digits-llamagen, digits-titok and digits-captions" in err
    )
    assert not list(tmp_path.iterdir())
