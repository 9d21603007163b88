"""Run folders whose JSON was changed: the file is named, whatever is in it."""

import json

import numpy as np
import pytest
from small_run import SmallModel, make_run

from avarc_cli.errors import AvarcError
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.read_run import open_run
from avarc_cli.results.records import read_ranking
from avarc_cli.results.run import classify
from avarc_cli.results.validate import check_metrics

PROTOCOL = {
    "plan": "2:1",
    "candidates": [0, 1, 2, 3],
    "candidate_ids": list("abcd"),
    "tokens": {"source": "x", "preprocess": "none", "length": 16},
    "model": {"name": "small"},
}


@pytest.fixture
def folder(tmp_path):
    classify(make_run(SmallModel(10**6)), RunFolder(tmp_path / "run"))
    asked = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(asked | PROTOCOL))
    return tmp_path / "run"


def test_a_run_as_it_was_written_is_read(folder):
    assert len(open_run(folder).records) == 10


@pytest.mark.parametrize(
    "changed",
    [
        {"plan": "nonsense"},
        {"plan": 5},
        {"candidates": None},
        {"candidates": []},
        {"candidates": [1, 2]},
        {"candidates": ["x"] * 4},
        {"candidate_ids": [1, 2, 3, 4]},
        {"tokens": {"source": "x", "preprocess": "none", "length": "x"}},
        {"tokens": []},
        {"model": "small"},
        {"candidates": [0, 1, 2, 10**12]},
        {"candidates": [0, 1, 2, -1]},
        {"candidates": [0, 1, 2, 2**63]},
        {"precision": 5},
        {"bank": []},
        {"stated": "x"},
        {"tokens": {"source": "x", "preprocess": "none", "dataset": 3}},
        {"tokens": {"source": "x", "preprocess": "none", "length": 2**63}},
    ],
)
def test_a_changed_run_json_is_named(folder, changed):
    asked = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(asked | changed))
    with pytest.raises(AvarcError, match=r"run\.json' is corrupt"):
        open_run(folder)


@pytest.mark.parametrize("line", ["5", "null", "{}", '{"index": "x"}', "[1"])
def test_a_changed_line_of_predictions_is_named(folder, line):
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    (folder / "predictions.jsonl").write_text("\n".join([*lines[:3], line, *lines[4:]]) + "\n")
    with pytest.raises(AvarcError, match=r"predictions\.jsonl.* is corrupt"):
        open_run(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("posterior", float("nan")),
        ("posterior", 2),
        ("label_rank", "0"),
        ("label_rank", -1),
        ("index", -1),
        ("near_tie", 1),
    ],
)
def test_a_changed_value_of_a_prediction_is_named(folder, field, value):
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {field: value})
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(AvarcError, match="line 1' is corrupt") as caught:
        open_run(folder)
    assert field in caught.value.why


def test_a_prediction_of_a_class_that_was_no_candidate_is_named(folder):
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"prediction": 7})
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(AvarcError, match=r"predictions\.jsonl' is corrupt") as caught:
        open_run(folder)
    assert caught.value.why == "class 7 in line 2 is none of the 4 candidates"


METRICS = {"images": 10, "labelled": 10, "near_ties": 0, "tokens_scored_per_image": 1, "bits_per_token": 1} | {
    "accuracy": 1,
    "accuracy_95": [0, 1],
    "correct": 10,
    "top_k": {"1": 1},
}


@pytest.mark.parametrize(
    "changed",
    [
        {"labelled": [1]},
        {"accuracy_95": [1]},
        {"accuracy_95": ["a", "b"]},
        {"top_k": {"1": "all"}},
        {"top_k": [1]},
        {"label_not_a_candidate": "x"},
        {"seconds_per_image": [1]},
        {"accuracy": float("inf")},
    ],
)
def test_changed_metrics_are_named(changed):
    check_metrics(METRICS, "metrics.json")
    with pytest.raises(AvarcError, match=r"metrics\.json' is corrupt"):
        check_metrics(METRICS | changed, "metrics.json")


def test_a_changed_journal_or_time_is_named_on_resume(folder):
    (folder / "run.json").write_text(json.dumps({"plan": "exhaustive"}))
    (folder / "predictions.jsonl").rename(folder / "predictions.jsonl.part")
    (folder / "seconds.part").write_text("")
    with pytest.raises(AvarcError, match=r"seconds\.part' is corrupt"):
        classify(make_run(SmallModel(10**6)), RunFolder(folder))
    (folder / "seconds.part").unlink()
    (folder / "predictions.jsonl.part").write_text("5\n" * 10)
    with pytest.raises(AvarcError, match="line 1' is corrupt"):
        classify(make_run(SmallModel(10**6)), RunFolder(folder))


def test_a_ranking_that_claims_to_be_encrypted_is_named(tmp_path):
    (tmp_path / "ranking").mkdir()
    file = tmp_path / "ranking" / "0.npz"
    np.savez(file, order=np.arange(3), posterior=np.full(3, 1 / 3))
    content = bytearray(file.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content)
    with pytest.raises(AvarcError, match=r"0\.npz' is corrupt"):
        read_ranking(file, 3)
