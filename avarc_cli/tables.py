"""Tables, fields and paragraphs as lines that fit the terminal: broken between words, never within one.

A table that is too wide is laid out in another way. A word that is longer than a line (a path, an address) stays whole
on a line of its own, so that it can be copied. Widths are in terminal columns. rich is imported with the first text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.text import Text

GAP = 2  # between the columns of a table
INDENT = 2  # of what belongs to the line above
READABLE = 20  # a column of text is not made narrower than this
RULE = "─"

Layout: TypeAlias = "Callable[[int], list[Text]]"
"""Gives the lines for a terminal of this width."""


@dataclass(frozen=True)
class Cell:
    """A text in a table or a field."""

    text: str
    whole: bool = False  # never broken: a name, a number, a path

    @cached_property
    def width(self) -> int:
        """Columns it takes when it is not broken."""
        return max(map(_width, self.text.split("\n")))

    @cached_property
    def least(self) -> int:
        """Columns it takes when it is broken between all words."""
        return self.width if self.whole else max(map(_width, self.text.split()), default=0)

    def lines(self, width: int) -> list[str]:
        return self.text.split("\n") if self.whole else [line.rstrip(" ") for line in wrap(self.text, width)]


def wrap(text: str, width: int) -> list[str]:
    """The lines of a text, each at most this wide unless it is a single word. What fits stays as it is."""
    lines = []
    for paragraph in text.split("\n"):
        line, *words = paragraph.split(" ")
        for word in words:
            if word and line.strip() and _width(line) + 1 + _width(word) > width:
                lines.append(line.rstrip(" "))
                line = word
            else:
                line = f"{line} {word}"
        lines.append(line)
    return lines


def paragraph(text: str) -> Layout:
    """Running text."""
    return lambda width: [_text(line) for line in wrap(text, width)]


def path_and(path: str, what: str) -> Layout:
    """A file that was written, and what it is: in one line, or else with the path on a line of its own."""

    def layout(width: int) -> list[Text]:
        if _width(f"{path}: {what}") <= width:
            return [_text(f"{path}: {what}")]
        return [_text(path), *_indented(paragraph(what)(width - INDENT))]

    return layout


def stack(*parts: Layout) -> Layout:
    """Parts one below the other, with an empty line between them."""

    def layout(width: int) -> list[Text]:
        lines = [line for part in parts for line in (*part(width), _text(""))]
        return lines[:-1]

    return layout


def fields(title: Cell, values: Sequence[tuple[str, Cell]]) -> Layout:
    """Names and values side by side; a value with a word that does not fit there is below its name."""
    return lambda width: [*_title(title, width), *_fields(values, width)]


def _fields(values: Sequence[tuple[str, Cell]], width: int) -> list[Text]:
    left = max((_width(name) for name, _ in values), default=0) + GAP
    lines = []
    for name, value in values:
        if value.least <= width - left:
            first, *others = value.lines(width - left)
            lines.append(_text(_fill(name, left), "bold").append(first, "not bold"))
            lines += [_text(" " * left + line) for line in others]
        else:
            lines += [_text(name, "bold"), *_indented(map(_text, value.lines(width - INDENT)))]
    return lines


@dataclass(frozen=True)
class Grid:
    """What a table holds."""

    columns: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    right: Sequence[bool]  # for each column, whether it is right-aligned

    def without(self, column: int) -> Grid:
        kept = [i for i in range(len(self.columns)) if i != column]
        rows = [[row[i] for i in kept] for row in self.rows]
        return Grid([self.columns[i] for i in kept], rows, [self.right[i] for i in kept])


def table(title: Cell, grid: Grid, optional: int | None = None) -> Layout:
    """A table; where it does not fit, the first cell of a row gets a line of its own, and then every cell does.

    Args:
        optional: the column to leave out first where the table does not fit.
    """

    def layout(width: int) -> list[Text]:
        shown = grid if optional is None or _widths(grid, width) else grid.without(optional)
        return [*_title(title, width), *(_columns(shown, width) or _groups(shown, width) or _stacked(shown, width))]

    return layout


def _columns(grid: Grid, width: int) -> list[Text]:
    """All cells of a row side by side; no lines if they do not fit."""
    widths = _widths(grid, width)
    if not widths:
        return []
    header, *rows = [_row(cells, widths, grid.right) for cells in (grid.columns, *grid.rows)]
    return [*_bold(header), _rule(widths), *itertools.chain(*rows)]


def _groups(grid: Grid, width: int) -> list[Text]:
    """The first cell of a row above the others; no lines if these do not fit side by side."""
    others = grid.without(0)
    widths = _widths(others, width - INDENT)
    if not widths:
        return []
    header, *rows = [
        [*_heading(first), *_indented(_row(cells, widths, others.right))]
        for (first, *_), cells in zip((grid.columns, *grid.rows), (others.columns, *others.rows), strict=True)
    ]
    return [*_bold(header), _rule([INDENT - GAP, *widths]), *itertools.chain(*rows)]


def _stacked(grid: Grid, width: int) -> list[Text]:
    """The cells of a row one below the other, each beside the name of its column."""
    names = [column.text for column in grid.columns[1:]]
    lines = []
    for first, *cells in grid.rows:
        filled = [(name, cell) for name, cell in zip(names, cells, strict=True) if cell.text]
        lines += [*_bold(_heading(first)), *_indented(_fields(filled, width - INDENT))]
    return lines


def _widths(grid: Grid, width: int) -> list[int]:
    """Widths of the columns side by side; empty if they do not fit."""
    by_column = list(zip(grid.columns, *grid.rows, strict=True))
    wanted = [max(cell.width for cell in cells) for cells in by_column]
    least = [max(cell.least for cell in cells) for cells in by_column]
    widths = [min(w, max(READABLE, n)) for w, n in zip(wanted, least, strict=True)]
    spare = width - sum(widths) - GAP * (len(widths) - 1)
    if spare < 0:
        return []
    for _ in range(min(spare, sum(wanted) - sum(widths))):  # one column more for the text that takes most lines
        growing = [i for i in range(len(widths)) if widths[i] < wanted[i]]
        widths[max(growing, key=lambda i: wanted[i] / widths[i])] += 1
    return widths


def _row(cells: Sequence[Cell], widths: Sequence[int], right: Sequence[bool]) -> list[Text]:
    columns = [cell.lines(width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for i in range(max(map(len, columns))):
        parts = [column[i] if i < len(column) else "" for column in columns]
        filled = [_fill(part, width, at_right) for part, width, at_right in zip(parts, widths, right, strict=True)]
        lines.append(_text((" " * GAP).join(filled).rstrip(" ")))
    return lines


def _heading(first: Cell) -> list[Text]:
    """The lines of a row's first cell: none if it is empty, as in a row that continues the one above."""
    return [_text(line) for line in first.text.split("\n")] if first.text else []


def _rule(widths: Sequence[int]) -> Text:
    return _text(RULE * (sum(widths) + GAP * (len(widths) - 1)))


def _title(title: Cell, width: int) -> list[Text]:
    return [_text(line, "italic") for line in title.lines(width)] if title.text else []


def _bold(lines: list[Text]) -> list[Text]:
    for line in lines:
        line.stylize("bold")
    return lines


def _indented(lines: Iterable[Text]) -> list[Text]:
    return [_text(" " * INDENT).append_text(line) if line else line for line in lines]


def _fill(text: str, width: int, right: bool = False) -> str:
    spaces = " " * (width - _width(text))
    return spaces + text if right else text + spaces


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style)
