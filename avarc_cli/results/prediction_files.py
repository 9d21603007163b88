"""Predictions as files that other programs read: CSV, JSON, Parquet. They are written record by record."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from avarc_cli.errors import UsageError
from avarc_cli.json_pieces import pieces
from avarc_cli.names import to_text
from avarc_cli.results.lines import Record
from avarc_cli.storage import replacing

AddRecords: TypeAlias = Callable[[Iterable[Record]], None]
"""Writes more records to a file."""

# Of CSV and Parquet: fields of records (`records.line`), and `correct`.
COLUMNS: dict[str, type] = {
    "index": int,
    "path": str,
    "prediction": int,
    "prediction_id": str,
    "prediction_name": str,
    "label": int,
    "label_id": str,
    "label_name": str,
    "label_rank": int,
    "correct": bool,
    "posterior": float,
    "score": float,
    "margin": float,
    "near_tie": bool,
    "bits_per_token": float,
    "tokens_scored": int,
}
ROWS_AT_ONCE = 10_000  # of Parquet
_QUOTED = re.compile(r'[",\r\n]|^\s|\s$')


def document(
    protocol: Mapping[str, Any],
    metrics: Mapping[str, Any],
    records: Iterable[Record],
    *,
    unreadable: Iterable[tuple[str, str]] = (),
    out: Path | None = None,
) -> dict[str, Any]:
    """All that a run gave, for `json_pieces.pieces`: it reads the records once."""
    return {
        "out": out,
        "model": protocol["model"]["name"],
        "plan": protocol["plan"],
        "metrics": metrics,
        "unreadable": dict(unreadable),
        "request": protocol,
        "predictions": iter(records),
    }


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a file of predictions, or replace one, in one step; its suffix decides about the format.

    Args:
        document: as made by `document`. CSV and Parquet hold only its predictions.
    Raises: UsageError as `check_packages`; OSError.
    """
    if path.suffix.lower() == ".json":
        with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
            file.writelines(pieces(document))
            file.write("\n")
        return
    table = parquet_file if path.suffix.lower() == ".parquet" else csv_file
    with table(path) as add:
        add(document["predictions"])


@contextmanager
def csv_file(path: Path) -> Iterator[AddRecords]:
    """A CSV file (RFC 4180, with line feeds) that replaces `path` at the end of the block.

    Names are written by `names.to_text`; what is unknown is empty. Raises: OSError.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(COLUMNS) + "\n")

        def add(records: Iterable[Record]) -> None:
            file.writelines(",".join(map(_csv_field, row(record))) + "\n" for record in records)

        yield add


def _csv_field(value: Any) -> str:
    # Not by the module csv: whether it quotes a carriage return depends on the version of Python.
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    return '"' + value.replace('"', '""') + '"' if not value or _QUOTED.search(value) else value


@contextmanager
def parquet_file(path: Path) -> Iterator[AddRecords]:
    """As `csv_file`, of Parquet. Raises: UsageError as `check_packages`; OSError."""
    arrow, parquet = import_pyarrow("write a .csv or .json file")
    types = {int: arrow.int64(), str: arrow.string(), float: arrow.float64(), bool: arrow.bool_()}
    schema = arrow.schema({name: types[kind] for name, kind in COLUMNS.items()})
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema) as file:

        def add(records: Iterable[Record]) -> None:
            rows = map(row, records)
            while some := list(islice(rows, ROWS_AT_ONCE)):
                columns = dict(zip(COLUMNS, map(list, zip(*some, strict=True)), strict=True))
                file.write_batch(arrow.record_batch(columns, schema=schema))

        yield add


def row(record: Record) -> list[Any]:
    known = record["label"] is not None
    values = {**record, "correct": record["label_rank"] == 0 if known else None}
    return [to_text(value) if isinstance(value := values[name], str) else value for name in COLUMNS]


def check_packages(path: Path) -> None:
    """Raises: UsageError when a package is missing that a file of this name needs."""
    if path.suffix.lower() == ".parquet":
        import_pyarrow("write a .csv or .json file")


def import_pyarrow(instead: str) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Args:
        instead: what can be done without.
    Raises: UsageError when they are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            "Parquet needs pyarrow", "it is not installed", f"pip install 'avarc[data]', or {instead}"
        ) from None
    return pyarrow, parquet
