"""--dry-run prints what a command would do, take and write, and writes nothing."""

import json
from pathlib import Path

import pytest

from avarc_cli.cli import main
from avarc_cli.commands import _dry_run
from avarc_cli.forecast import ScoringForecast
from avarc_cli.zoo.local_files import ASSETS

DIGITS = str(ASSETS / "digits/test")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty current folder; temporary files lie elsewhere."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def entries(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_classify_says_what_it_would_take_for_images(work, capsys):
    options = ["--sample", "30", "--plan", "2:5,4:1:2", "--save-json", "--out", "deep/run", "--results-file", "all.csv"]
    assert main(["--json", "classify", DIGITS, *options, "--dry-run"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    assert entries(work) == []
    scoring, encoding = forecast["scoring"], forecast["encoding"]
    assert scoring["plan"] == "2:5,4:1:2" and (scoring["images"], scoring["classes"]) == (30, 10)
    assert scoring["pairs"] == 300
    ends = (1, 5, 14, 39)  # of 1, 2, 3 and 5 tokens a side
    assert scoring["tokens"] == 30 * (10 * ends[1] + 5 * (ends[3] - ends[1]) + 5 * ends[3])
    assert scoring["seconds"] > 0 and scoring["memory"] > 0
    assert (encoding["images"], encoding["samples"], encoding["measured_on_images"]) == (30, 2, 8)
    run = ("tokens.h5", "run.json", "predictions.jsonl", "predictions.csv", "metrics.json", "json")
    files = {"all.csv", *(f"deep/run/{name}" for name in run)}
    assert forecast["files"].keys() == files and forecast["files"]["deep/run/tokens.h5"] == 30 * 2 * 103 * 2


def test_a_cache_is_not_encoded_again_and_without_out_nothing_is_written(work, capsys):
    assert main(["encode", DIGITS, "--limit", "3", "--out", "t.h5"]) == 0
    before = (work / "t.h5").read_bytes()
    capsys.readouterr()
    assert main(["classify", "t.h5", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "encoding" not in shown and "30, 3 images x 10 classes" in shown and "It would write no file." in shown
    assert "matrix products" in shown
    assert entries(work) == ["t.h5"] and (work / "t.h5").read_bytes() == before


def test_a_run_that_exists_stays_as_it_is_and_another_plan_is_refused(work, capsys):
    assert main(["encode", DIGITS, "--limit", "2", "--out", "t.h5"]) == 0
    assert main(["classify", "t.h5", "--out", "run"]) == 0
    before = {name: (work / name).read_bytes() for name in entries(work) if (work / name).is_file()}
    assert main(["classify", "t.h5", "--out", "run", "--dry-run", "--overwrite", "--plan", "2:1"]) == 0
    assert main(["classify", "t.h5", "--out", "run", "--dry-run", "--plan", "2:1"]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert {name: (work / name).read_bytes() for name in entries(work) if (work / name).is_file()} == before


def test_encode_measures_a_few_images(work, capsys):
    assert main(["--json", "encode", DIGITS, "--samples", "3", "--out", "t.h5", "--dry-run"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    assert forecast["files"] == {"t.h5": 360 * 3 * 103 * 2}
    assert forecast["encoding"]["seconds"] > 0 and forecast["encoding"]["tokens_per_sample"] == 103
    assert entries(work) == []


def test_export_scores_every_class_of_a_cache(work, capsys):
    assert main(["encode", DIGITS, "--limit", "2", "--out", "t.h5"]) == 0
    capsys.readouterr()
    assert main(["--json", "export", "t.h5", "--out", "x.npz", "--dry-run"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    assert forecast["files"] == {"x.npz": None} and forecast["scoring"]["tokens"] == 2 * 10 * 103
    assert entries(work) == ["t.h5"]


def test_tune_scores_every_class_of_both_caches(work, capsys):
    for name, seed in (("t.h5", "0"), ("other.h5", "1")):
        assert main(["encode", DIGITS, "--sample", "20", "--seed", seed, "--samples", "2", "--out", name]) == 0
    capsys.readouterr()
    words = ["tune", "t.h5", "--agreement", "0.9", "--classes", "0,3,5", "--samples", "2", "--out", "plan.json"]
    assert main(["--json", *words, "--evaluate", "other.h5", "--dry-run"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    assert forecast["files"] == {"plan.json": None} and forecast["scoring"]["plan"] == "5:1:2"
    assert forecast["scoring"]["pairs"] == 2 * 20 * 3 and forecast["scoring"]["tokens"] == 2 * 20 * 3 * 2 * 103
    assert forecast["scoring"]["seconds"] > 0 and forecast["scoring"]["memory"] > 0
    assert main(["tune", "t.h5", "--agreement", "0.99", "--dry-run"]) == 2, "20 images are too few"
    (work / "plan.json").write_text("{}")
    assert main([*words, "--dry-run"]) == 2
    assert "exists" in capsys.readouterr().err
    assert entries(work) == ["other.h5", "plan.json", "t.h5"]


def test_the_forecast_fits_80_columns(work, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["classify", DIGITS, "--limit", "9", "--out", "run", "--save-likelihood", "--dry-run"]) == 0
    drawn = ScoringForecast(
        plan="5:1",
        images=9,
        classes=1000,
        pairs=9000,
        tokens=927_000,
        seconds=3e4,
        memory=1 << 33,
        weights=0,
        drawn=20_000,
    )
    _dry_run.show({Path("plan.json"): None}, scoring=drawn)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
