"""The table of a protocol as CSV, Markdown and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avarc_cli import page
from avarc_cli.data.labels import human_name
from avarc_cli.evaluation.evaluate import Cell
from avarc_cli.evaluation.formatting import seconds
from avarc_cli.evaluation.protocol import Column, Protocol
from avarc_cli.names import to_line
from avarc_cli.storage import write_bytes

COLUMNS = ("row", "accuracy", "95 % interval", "published", "images", "tokens/image", "time/image")
NUMBERS = (1, 3, 4, 5, 6)  # right-aligned
NOT_RUN = "not run"


def write_tables(protocol: Protocol, cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write table.csv, table.md and table.html; their paths."""
    written = {
        "csv": _csv(protocol, cells),
        "md": _markdown(protocol, cells),
        "html": _html(protocol, cells),
    }
    paths = [folder / f"table.{suffix}" for suffix in written]
    for path, content in zip(paths, written.values(), strict=True):
        write_bytes(path, content.encode("utf-8"))
    return paths


def tables(protocol: Protocol, cells: Sequence[Cell]) -> list[tuple[Column, list[list[str]]]]:
    """For each column of the protocol the lines of its table, as text: its cells, then what is published only."""
    found = []
    for column in protocol.columns:
        lines = [_line(cell) for cell in cells if cell.column == column]
        lines += [
            [reference.title, "", "", _percent(reference.published[column.name]), "", "", ""]
            for reference in protocol.references
            if column.name in reference.published
        ]
        found.append((column, lines))
    return found


def sources(protocol: Protocol) -> list[tuple[str, str]]:
    """(row or method, source of its published values)."""
    rows = [(row.title or row.name, row.source) for row in protocol.rows if row.published]
    return rows + [(reference.title, reference.source) for reference in protocol.references]


def not_run(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """(cells, reason and what to do) of the cells that were not run; cells with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        for error in cell.not_run:
            words = "; ".join(filter(None, (error.what, error.why, error.fix)))
            reasons.setdefault(words, []).append(f"{cell.row.name}/{cell.column.name}")
    return [(", ".join(names), reason) for reason, names in reasons.items()]


def as_data(protocol: Protocol, cells: Sequence[Cell]) -> dict[str, Any]:
    """For --json."""
    return {
        "title": protocol.title,
        "cells": [_values(cell) for cell in cells],
        "references": [vars(reference) for reference in protocol.references],
    }


def _values(cell: Cell) -> dict[str, Any]:
    metrics = cell.metrics or {}
    low, high = metrics.get("accuracy_95") or (None, None)
    published = cell.row.published.get(cell.column.name)
    return {
        "row": cell.row.name,
        "column": cell.column.name,
        "accuracy": metrics.get("accuracy"),
        "accuracy_low": low,
        "accuracy_high": high,
        "tasks": metrics.get("tasks"),
        "images": metrics.get("images"),
        "labelled": metrics.get("labelled"),
        "unreadable": cell.unreadable,
        "tokens_per_image": metrics.get("tokens_scored_per_image"),
        "seconds_per_image": metrics.get("seconds_per_image"),
        "published": None if published is None else published / 100,
        "source": cell.row.source if published is not None else "",
        "not_run": "; ".join(to_line(f"{error.what}; {error.fix}") for error in cell.not_run),
        "run": None if cell.run is None else str(cell.run),
    }


def _line(cell: Cell) -> list[str]:
    value = _values(cell)
    title, published = cell.row.title or cell.row.name, cell.row.published.get(cell.column.name)
    shown = "" if published is None else _percent(published)
    if cell.metrics is None:
        return [title, NOT_RUN, "", shown, "", "", ""]
    accuracy, low = value["accuracy"], value["accuracy_low"]
    return [
        title,
        "no labels" if accuracy is None else f"{100 * accuracy:.2f}{_tasks(value['tasks'])}",
        "" if low is None else f"{100 * low:.1f} to {100 * value['accuracy_high']:.1f}",
        shown,
        f"{value['labelled'] or value['images']:,}",
        "" if value["tokens_per_image"] is None else f"{value['tokens_per_image']:,.0f}",
        seconds(value["seconds_per_image"]),
    ]


def _percent(value: float) -> str:
    """A published value, with one decimal or two."""
    return f"{value:.2f}".removesuffix("0")


def _tasks(accuracies: Sequence[float] | None) -> str:
    return "" if accuracies is None else f" ({', '.join(f'{100 * each:.1f}' for each in accuracies)})"


def _csv(protocol: Protocol, cells: Sequence[Cell]) -> str:
    """One line for each cell, then one for each published value of a method that is not run. Fractions, not percent."""
    lines = [_values(cell) for cell in cells]
    for reference in protocol.references:
        for column, value in reference.published.items():
            known = {"row": reference.title, "column": column, "published": value / 100, "source": reference.source}
            lines.append(known)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(_FIELDS), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows([{name: _field(line[name]) for name in _FIELDS if name in line} for line in lines])
    return buffer.getvalue()


_FIELDS = (
    *("row", "column", "accuracy", "accuracy_low", "accuracy_high", "tasks", "images", "labelled", "unreadable"),
    *("tokens_per_image", "seconds_per_image", "published", "source", "not_run", "run"),
)


def _field(value: object) -> object:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return to_line(value) if isinstance(value, str) else value


def _markdown(protocol: Protocol, cells: Sequence[Cell]) -> str:
    parts = [f"# {_escaped(protocol.title)}", _escaped(protocol.about), _NOTE]
    for column, lines in tables(protocol, cells):
        rule = ["---:" if i in NUMBERS else "---" for i in range(len(COLUMNS))]
        rows = [COLUMNS, rule, *([_escaped(cell) for cell in line] for line in lines)]
        parts += [f"## {_escaped(_title(column))}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    if named := sources(protocol):
        parts += ["## Sources of published values", _list(named)]
    if missing := not_run(cells):
        parts += ["## Not run", _list(missing)]
    return "\n\n".join(filter(None, parts)) + "\n"


_NOTE = (
    "Accuracies in percent; where classes come task by task, the average over tasks, and each task. Times are of "
    "scoring, on the machine of the run. Published values were not measured here."
)


def _list(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {_escaped(name)}: {_escaped(words)}" for name, words in pairs)


def _escaped(value: str) -> str:
    """Text on one line of Markdown, in a table too."""
    line = to_line(value)
    for character in "\\`*_[]<>|":
        line = line.replace(character, f"\\{character}")
    return line


def _title(column: Column) -> str:
    return column.title or human_name(column.name)


def _html(protocol: Protocol, cells: Sequence[Cell]) -> str:
    return page.render(
        "protocol_table.html",
        title=protocol.title,
        about=protocol.about,
        note=_NOTE,
        columns=COLUMNS,
        numbers=NUMBERS,
        tables=[(_title(column), lines) for column, lines in tables(protocol, cells)],
        lists=[("Sources of published values", sources(protocol)), ("Not run", not_run(cells))],
    )
