"""Predictions of classify: on the console, in --json, and in files of the user's choice."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from small_datasets import noise
from terminal import too_long

from avarc_cli.cli import main
from avarc_cli.results.folder import RunFolder


@pytest.fixture(scope="module")
def caches(tiny_files: Path, models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`labelled.h5`: 16 images of four classes; `bare.h5`: two images without labels; both with two neighbours each."""
    folder = tmp_path_factory.mktemp("caches")
    noise(folder / "img", 16)
    for name, images in (("labelled", folder / "img"), ("bare", tiny_files / "img")):
        encode = ["encode", str(images), *models, "--preprocess", "none", "--samples", "3"]
        assert main([*encode, "--out", str(folder / f"{name}.h5")]) == 0
    return folder


@pytest.fixture
def classify(caches, models, capsys, monkeypatch):
    """Classifies a cache in a terminal of 80 columns; returns what is on stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(cache: str, *options: object, code: int = 0, mode: str = "--human") -> tuple[str, str]:
        capsys.readouterr()
        words = [*([] if mode == "--human" else [mode]), "classify", str(caches / cache), *models, *map(str, options)]
        assert main(words) == code
        out, err = capsys.readouterr()
        if mode == "--human":
            assert not too_long(out, 80)
        return out, err

    return run


def table(shown: str) -> list[list[str]]:
    """The cells of the first table's header and rows."""
    rows = shown.split("\n\n")[0].splitlines()
    return [row.split() for row in rows if set(row) != {"─"}]


def test_few_images_are_shown_one_by_one_with_their_labels(classify):
    header, *rows = table(classify("labelled.h5", "--limit", 12)[0])
    assert header == ["image", "class", "probability", "label", "result"] and len(rows) == 12
    for path, predicted, _, label, result in rows:
        assert label == path.split("/")[0] and result == ("right" if predicted == label else "wrong")
    header, *rows = table(classify("labelled.h5", "--limit", 4, "--classes", "7,8")[0])
    assert {row[-2] + row[-1] for row in rows} == {"nocandidate"}


def test_very_few_images_are_shown_with_their_best_classes(classify):
    shown = classify("bare.h5")[0]
    header, *rows = table(shown)
    assert header == ["image", "class", "probability", "score", "(nats)"] and len(rows) == 10
    assert "accuracy" not in shown


def test_scores_of_dropped_candidates_say_what_they_cover(classify):
    shown = classify("bare.h5", "--plan", "2:3,4:2,4:1:3")[0]
    for covered, count in (("all 30 tokens, 3 samples", 4), ("all 30 tokens\n", 2), ("5 of 30 tokens", 4)):
        assert shown.count(covered) == count
    predictions = json.loads(classify("bare.h5", "--plan", "2:3,4:2,4:1:3", mode="--json")[0])["predictions"]
    for prediction in predictions:
        best = prediction["best"]
        assert [(b["tokens"], b["samples"], b["orders"]) for b in best] == [(30, 3, 1)] * 2 + [(30, 1, 1)] + [
            (5, 1, 1)
        ] * 2
        scores = [b["score"] for b in best]
        assert scores[3] > scores[0], "a score of fewer tokens is higher, and yet it comes later"
        assert scores[0] > scores[1] and scores[3] > scores[4]


def test_many_images_are_counted_by_predicted_class_most_frequent_first(classify, monkeypatch):
    shown = classify("labelled.h5")[0]
    header, *rows = table(shown)
    assert header == ["predicted", "class", "images", "share", "right"]
    counts = [int(row[1]) for row in rows]
    assert sum(counts) == 16 and counts == sorted(counts, reverse=True) and len(rows) > 2
    predictions = json.loads(classify("labelled.h5", mode="--json")[0])["predictions"]
    for name, images, share, right in rows:
        own = [p for p in predictions if p["prediction_name"] == name]
        assert len(own) == int(images) and share == f"{len(own) / 16:.1%}"
        assert int(right) == sum(p["label_rank"] == 0 for p in own)
    monkeypatch.setattr("avarc_cli.commands._predictions.CLASSES", 1)
    more = f"and {len(rows) - 1} more classes ({16 - counts[0]} images)"
    assert more in classify("labelled.h5")[0]


def test_many_images_without_labels_are_counted_too(classify, caches, models, tiny_files, monkeypatch):
    monkeypatch.setattr("avarc_cli.commands._predictions.FEW", 1)
    header, *rows = table(classify("bare.h5")[0])
    assert header == ["predicted", "class", "images", "share"] and sum(int(row[1]) for row in rows) == 2


def test_json_holds_everything_that_a_run_gave(classify, tmp_path):
    run = tmp_path / "run"
    there = json.loads(classify("labelled.h5", "--plan", "2:5,4:1", "--out", run, mode="--json")[0])
    assert there["out"] == str(run) and there["plan"] == "2:5,4:1" and there["model"] == "VAR.pth"
    assert there["request"] == json.loads((run / "run.json").read_text())
    assert there["metrics"] == json.loads((run / "metrics.json").read_text())
    assert there["predictions"] == [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_a_results_file_needs_no_run_folder_and_holds_the_same_as_one(classify, tmp_path):
    run = tmp_path / "run"
    out = classify("labelled.h5", "--out", run, "--results-file", tmp_path / "a.csv")[0]
    assert "a.csv" in out and "16 predictions" in out and "predictions.csv" in out
    assert (run / "predictions.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    classify("labelled.h5", "--results-file", tmp_path / "b.CSV")
    assert (tmp_path / "b.CSV").read_bytes() == (tmp_path / "a.csv").read_bytes()
    printed = json.loads(classify("labelled.h5", "--results-file", tmp_path / "c.json", mode="--json")[0])
    assert json.loads((tmp_path / "c.json").read_text()) == printed
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction_name"] for row in rows] == [p["prediction_name"] for p in printed["predictions"]]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "a.csv", "b.CSV", "c.json"}, "no lock is left"
    RunFolder(run).clear()
    assert not (run / "predictions.csv").exists()


def test_a_results_file_is_replaced_only_by_its_own_kind_and_only_on_request(classify, tmp_path):
    for name, content in (("a.csv", "my,own,table\n"), ("b.json", '{"format": 1}'), ("c.parquet", "text")):
        path = tmp_path / name
        path.write_text(content)
        assert "exists" in classify("bare.h5", "--results-file", path, code=2)[1]
        assert "it is not" in classify("bare.h5", "--results-file", path, "--overwrite", code=2)[1]
        assert path.read_text() == content
        path.unlink()
    classify("bare.h5", "--results-file", tmp_path / "a.csv")
    before = (tmp_path / "a.csv").read_text()
    classify("bare.h5", "--classes", "1,2", "--results-file", tmp_path / "a.csv", "--overwrite")
    assert (tmp_path / "a.csv").read_text() != before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--results-file", "p.txt"], "there is no format '.txt'"),
        (["--results-file", "none/p.csv"], "is not a folder"),
        (["--out", "run", "--results-file", "run/metrics.json", "--overwrite"], "run's own"),
        (["--overwrite"], "nothing to overwrite"),
    ],
)
def test_a_wrong_results_file_is_refused_before_anything_is_loaded(classify, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr("avarc_cli.classifier.load_classifier")
    assert says in classify("bare.h5", *options, code=2)[1]
    assert not list(tmp_path.iterdir())
