"""The tables that benchmarks print: Markdown to read, or with --json every number as measured, for `figures.py`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Cell = str | float | None
"""A name, a number, or nothing."""


@dataclass(frozen=True)
class Table:
    """Rows of figures. Field names are keys of --json."""

    columns: Sequence[tuple[str, str]]
    """The name of each column, and how its numbers are shown, as in f-strings."""
    rows: Sequence[Sequence[Cell]]
    """As many cells as columns."""
    title: str = ""
    """Of a table that is not the only one."""

    def markdown(self) -> Iterator[str]:
        """Its lines."""
        if self.title:
            yield from (f"{self.title}:", "")
        yield from head(*(name for name, _ in self.columns))
        for cells in self.rows:
            yield row(*(shown(cell, how) for cell, (_, how) in zip(cells, self.columns, strict=True)))


def wants_json(words: list[str]) -> bool:
    """Take --json out of the words of a command line; whether it was there."""
    found = "--json" in words
    words[:] = [word for word in words if word != "--json"]
    return found


def say(text: str) -> None:
    """Report what is being done. stdout is for the tables."""
    print(text, file=sys.stderr, flush=True)


def show(*tables: Table, as_json: bool, **about: Any) -> None:
    """Print tables, or one JSON object of them and of what else is said about them."""
    if as_json:
        print(json.dumps({"tables": [asdict(table) for table in tables], **about}))
    else:
        print("\n".join(markdown(tables)))


def markdown(tables: Sequence[Table]) -> Iterator[str]:
    """Lines of the tables, an empty one between two."""
    for number, table in enumerate(tables):
        if number:
            yield ""
        yield from table.markdown()


def shown(cell: Cell, how: str) -> str:
    """A cell as the documentation writes it: "58 %", "3.8e-7"."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    return re.sub(r"e([+-])0", r"e\1", format(cell, how)).replace("%", " %")


def head(*cells: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield row(*cells)
    yield "|" + "---|" * len(cells)


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"
