"""A run records where its files are: report and explain need no options, and name what has moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_datasets import noise

from avarc_cli.cli import main

PLAN = ["--plan", "2:5,4:1"]


@pytest.fixture(scope="module")
def encoded(tiny_files, tmp_path_factory):
    """A folder with a model, its tokenizer, six images, and their tokens."""
    folder = tmp_path_factory.mktemp("encoded")
    for name in ("VAR.pth", "VAE.pth"):
        shutil.copy(tiny_files / name, folder)
    noise(folder / "img", 6)
    words = [*("--model", str(folder / "VAR.pth")), *("--tokenizer", str(folder / "VAE.pth")), "--preprocess", "none"]
    assert main(["encode", str(folder / "img"), *words, "--out", str(folder / "t.h5")]) == 0
    return folder


@pytest.fixture
def made(encoded, tmp_path, monkeypatch, capsys):
    """A run that was made with relative names of everything, without saved likelihoods."""
    folder = shutil.copytree(encoded, tmp_path / "made")
    monkeypatch.chdir(folder)
    assert main(["classify", "t.h5", "--model", "VAR.pth", "--tokenizer", "VAE.pth", *PLAN, "--out", "run"]) == 0
    capsys.readouterr()
    return folder


def explain(*options: object) -> int:
    return main(["--json", "explain", "run", "--out", "e.png", "--overwrite", "--limit", "2", *map(str, options)])


def test_a_run_records_names_as_given_and_where_they_lead(made):
    places = json.loads(Path("run/run.json").read_text())["places"]
    given = {"model": "VAR.pth", "tokenizer": "VAE.pth", "tokens": "t.h5"}
    assert places == {name: {"given": file, "path": str(made / file)} for name, file in given.items()}


def test_report_and_explain_need_no_options_from_anywhere(made, monkeypatch, capsys):
    (made / "elsewhere").mkdir()
    monkeypatch.chdir(made / "elsewhere")
    assert main(["--json", "report", "../run", "--hardest", "3", "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out)["explained"] == 3
    words = ["../run", "--rows", "1,4", "--vs", "label", "--npz", "e.npz", "--out", "e.svg"]
    assert main(["--json", "explain", *words]) == 0
    explained = json.loads(capsys.readouterr().out)["explained"]
    lines = [json.loads(line) for line in Path("../run/predictions.jsonl").read_text().splitlines()]
    assert [(e["row"], e["path"], e["prediction"]) for e in explained] == [
        (row, lines[row]["path"], lines[row]["prediction_name"]) for row in (1, 4)
    ]
    whole = ["--plan", "2:5,4:1", "--rows", "1,4", "--vs", "label", "--npz", "c.npz", "--out", "c.svg"]
    assert main(["explain", "../t.h5", "--model", "../VAR.pth", "--tokenizer", "../VAE.pth", *whole]) == 0
    with np.load("e.npz") as of_run, np.load("c.npz") as of_cache:
        shared = set(of_run.files) & set(of_cache.files)
        for name in (name for name in shared if "ratio" in name or "map" in name):
            assert np.allclose(of_run[name], of_cache[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("name", "called", "option"),
    [("t.h5", "token cache", "--tokens"), ("VAR.pth", "model", "--model"), ("VAE.pth", "tokenizer", "--tokenizer")],
)
def test_what_has_moved_is_named_with_the_option_that_says_where_it_is(made, capsys, name, called, option):
    (made / name).rename(made / f"moved-{name}")
    assert explain() == 2
    message = capsys.readouterr().err
    assert f"the {called} of 'run' is not where it was" in message and str(made / name) in message
    assert f"{option} FILE" in message
    assert main(["report", "run", "--hardest", "1", "--overwrite"]) == 0
    assert f"the {called} of 'run' is not where it was" in capsys.readouterr().err
    assert explain(option, f"moved-{name}") == 0
    words = ["run", option, f"moved-{name}", "--hardest", "1", "--overwrite"]
    assert main(["--json", "report", *words]) == 0
    assert json.loads(capsys.readouterr().out.split("\n}\n", 1)[1])["explained"] == 1


def test_other_images_in_the_place_of_the_cache_are_named(made, capsys):
    (made / "t.h5").unlink()
    noise(made / "other", 3)
    models = ["--model", "VAR.pth", "--tokenizer", "VAE.pth", "--preprocess", "none"]
    assert main(["encode", "other", *models, "--out", "t.h5"]) == 0
    assert explain() == 2
    message = capsys.readouterr().err
    assert "holds other images than the run" in message and "--tokens FILE" in message


def test_files_that_a_foreign_run_names_are_used_only_on_request(made, capsys):
    there = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(there | {"threads": 99}))
    assert explain() == 2
    assert "you did not make this run here" in capsys.readouterr().err
    assert explain("--tokens", "t.h5") == 2
    assert "--model" in capsys.readouterr().err
    assert explain("--tokens", "t.h5", "--model", "VAR.pth") == 2
    assert "--tokenizer" in capsys.readouterr().err
    assert explain("--tokens", "t.h5", "--model", "VAR.pth", "--tokenizer", "VAE.pth") == 0
    assert explain("--allow-outside") == 0


def test_the_same_request_by_other_names_continues_the_run(made, capsys):
    before = {path.name: path.read_bytes() for path in (made / "run").iterdir()}
    shutil.copy("t.h5", "copy.h5")
    models = ["--model", str(made / "VAR.pth"), "--tokenizer", "./VAE.pth"]
    assert main(["classify", "copy.h5", *models, *PLAN, "--out", "run"]) == 0
    assert {path.name: path.read_bytes() for path in (made / "run").iterdir()} == before


def test_a_run_of_images_is_explained_from_its_own_cache_even_if_it_moved(made, capsys):
    models = ["--model", "VAR.pth", "--tokenizer", "VAE.pth", "--preprocess", "none"]
    assert main(["classify", "img", *models, "--save-json", "--out", "images"]) == 0
    there = json.loads(Path("images/run.json").read_text())
    assert set(there["places"]) == {"model", "tokenizer"}
    assert "places" not in json.loads(Path("images/json/0.json").read_text())["configuration"]
    shutil.rmtree("run")
    Path("images").rename("run")
    assert explain() == 0


def test_options_that_a_run_decides_are_refused(made, capsys):
    assert explain("--plan", "exhaustive", "--classes", "1,2") == 2
    assert "no use for --plan, --classes" in capsys.readouterr().err.replace("--classes, --plan", "--plan, --classes")
    assert main(["explain", "t.h5", "--tokens", "t.h5"]) == 2
    assert "no use for --tokens" in capsys.readouterr().err


@pytest.mark.parametrize("places", [[], {"model": "VAR.pth"}, {"tokens": {"path": 3}}, {"image_size": "big"}])
def test_corrupt_places_are_named(made, capsys, places):
    there = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(there | {"places": places}))
    assert explain("--allow-outside") == 1
    assert "missing or invalid: places" in capsys.readouterr().err


def test_a_run_with_added_classes_finds_its_bank(setting, tmp_path, capsys):
    run, bank = tmp_path / "run", shutil.copytree(setting.bank, tmp_path / "bank")
    words = ["--bank", str(bank), "--limit", "2", "--out", str(run)]
    assert main(["classify", str(setting.cache), *setting.models, *words]) == 0
    assert main(["--json", "explain", str(run), "--out", str(tmp_path / "e.png")]) == 0
    bank.rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["explain", str(run), "--out", str(tmp_path / "f.png")]) == 2
    message = capsys.readouterr().err
    assert "the class bank of" in message and "--bank DIR" in message
    assert main(["explain", str(run), "--bank", str(tmp_path / "moved"), "--out", str(tmp_path / "f.png")]) == 0
