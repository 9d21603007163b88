"""Predictions as CSV, JSON and Parquet: the same values in each, whatever the names are."""

from __future__ import annotations

import csv
import json
import sys
import tracemalloc

import pytest

from avarc_cli import names
from avarc_cli.errors import UsageError
from avarc_cli.results.prediction_files import COLUMNS, check_packages, csv_file, document, write

ODD = [
    "plain.png",
    "a,b.png",
    'a "quoted" one',
    "two\nlines",
    "carriage\rreturn",
    " spaces ",
    "",
    "=1+1",
    "caf\udce9",
    "\\udce9",
    "\u00e9",
]
PROTOCOL = {"model": {"name": "m"}, "plan": "1:1"}


def record(index: int, path: str, label: int | None = 1, rank: int | None = 0, margin: float | None = 2.5):
    known = label is not None
    return {
        "index": index,
        "path": path,
        "prediction": 1,
        "prediction_id": "n01",
        "prediction_name": "cat, tabby",
        "label": label,
        "label_id": "n01" if known else None,
        "label_name": "cat, tabby" if known else None,
        "label_rank": rank,
        "posterior": 0.1 + 0.2,
        "score": -1e-7,
        "margin": margin,
        "near_tie": False,
        "bits_per_token": 3.0,
        "tokens_scored": 103,
        "best": [{"class": 1}],
        "tokens_digest": "00",
    }


RECORDS = [record(i, path) for i, path in enumerate(ODD)]
RECORDS += [record(20, "no label", None, None, None), record(21, "wrong", 2, 3), record(22, "no candidate", 3, None)]


def test_a_csv_is_read_back_as_it_was(tmp_path):
    path = tmp_path / "p.csv"
    write(path, document(PROTOCOL, {}, RECORDS))
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [names.from_text(row["path"]) for row in rows[: len(ODD)]] == ODD
    assert [float(row["posterior"]) for row in rows] == [0.1 + 0.2] * len(RECORDS)
    assert {row["prediction_name"] for row in rows} == {"cat, tabby"}
    no_label, wrong, no_candidate = rows[-3:]
    assert [no_label[name] for name in ("label", "label_id", "label_rank", "correct", "margin")] == [""] * 5
    assert (rows[0]["correct"], wrong["correct"], no_candidate["correct"]) == ("true", "false", "false")
    assert (wrong["label_rank"], no_candidate["label_rank"], rows[0]["near_tie"]) == ("3", "", "false")


def test_json_and_parquet_hold_the_same_predictions(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    numbers = {"images": len(RECORDS), "nan": float("nan")}
    write(tmp_path / "p.json", document(PROTOCOL, numbers, RECORDS, unreadable=[("x", "why")], out=tmp_path))
    text = (tmp_path / "p.json").read_bytes()
    there = names.from_json(text)
    assert there["predictions"] == RECORDS and len(text.splitlines()) < len(RECORDS) + 40
    assert (there["model"], there["plan"], there["request"]) == ("m", "1:1", PROTOCOL)
    assert (there["out"], there["unreadable"]) == (str(tmp_path), {"x": "why"})
    assert there["metrics"] == numbers | {"nan": None}
    write(tmp_path / "p.parquet", document(PROTOCOL, numbers, RECORDS))
    rows = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert [names.from_text(row["path"]) for row in rows] == [each["path"] for each in RECORDS]
    assert [row["correct"] for row in rows[-3:]] == [None, False, False]
    assert all(row[name] == each[name] for row, each in zip(rows, RECORDS, strict=True) for name in ("score", "margin"))


def test_no_predictions_are_a_file_too(tmp_path):
    for name in ("p.json", "p.csv"):
        write(tmp_path / name, document(PROTOCOL, {}, []))
    assert json.loads((tmp_path / "p.json").read_text())["predictions"] == []
    assert (tmp_path / "p.csv").read_text() == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_memory_does_not_grow_with_the_predictions(tmp_path, suffix):
    tracemalloc.start()
    try:
        write(tmp_path / f"p.{suffix}", document(PROTOCOL, {}, (record(i, "x" * 50) for i in range(3000))))
        assert tracemalloc.get_traced_memory()[1] < 500_000, "of about a megabyte"
    finally:
        tracemalloc.stop()


def test_parquet_without_pyarrow_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="Parquet needs pyarrow"):
        check_packages(tmp_path / "p.parquet")
    check_packages(tmp_path / "p.csv")


def test_a_csv_that_fails_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("earlier")
    with pytest.raises(KeyError), csv_file(path) as add:
        add([{}])
    assert path.read_text() == "earlier" and len(list(tmp_path.iterdir())) == 1
