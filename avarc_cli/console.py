"""All terminal output: results on stdout, everything else on stderr, in human, JSON or quiet mode.

Text from outside (file names, class names) is never interpreted as markup, and control characters in it are escaped.
rich is imported with the first thing printed.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, cast

from avarc_cli import tables
from avarc_cli.errors import EXIT_FAILED, AvarcError, UsageError
from avarc_cli.json_pieces import jsonable, pieces
from avarc_cli.names import to_json, to_line
from avarc_cli.process import discard_stdout
from avarc_cli.tables import Cell, Layout
from avarc_cli.words import agreeing, plural

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PIPE_WIDTH = 10_000  # columns of a file or a pipe, where no line needs to be broken
SECONDS_BETWEEN_LINES = 10.0  # between progress lines, where stderr is not a terminal
SPEED_WINDOW = 3600.0  # seconds; a slow model on a CPU may take minutes between two updates


class Mode(enum.Enum):
    """What goes to stdout: tables for people, one JSON document, or only the bare result."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


@dataclasses.dataclass
class _Settings:
    mode: Mode = Mode.HUMAN
    debug: bool = False
    json_progress: bool = False
    silent: bool = False


_settings = _Settings()


def configure(
    mode: Mode | None = None, debug: bool | None = None, progress: str | None = None, silent: bool | None = None
) -> None:
    """Set how everything from now on is printed. None leaves a setting unchanged.

    Args:
        progress: "json" for lines that a scheduler can read; "" for a bar or lines for people.
        silent: print nothing but failures of this process: another one of the job says the rest.
    Raises: UsageError for another progress.
    """
    if mode is not None:
        _settings.mode = mode
    if debug is not None:
        _settings.debug = debug
    if silent is not None:
        _settings.silent = silent
    if progress is not None:
        if progress not in ("", "json"):
            raise UsageError(f"AVARC_PROGRESS is '{progress[:40]}'", "it is json, or not set", "unset AVARC_PROGRESS")
        _settings.json_progress = progress == "json"
    _stdout.cache_clear()
    _stderr.cache_clear()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal must not crash a run


def mode() -> Mode:
    """The current mode."""
    return _settings.mode


def result(data: object, human: Layout | str = "", brief: str | Iterable[Sequence[object]] = "") -> None:
    """Print a command's result on stdout.

    Args:
        data: what --json prints, as `json_pieces.pieces` takes it.
        human: what people see: text, or a layout made by `table`, `fields`, `text`, `path_and` or `stack`.
        brief: what --quiet prints, for scripts: one line, or lines of fields with tabs between them. Empty for nothing.
    Raises: AvarcError when stdout cannot be written to; BrokenPipeError when its reader is gone.
    """
    if _settings.silent:
        return
    try:
        _print_result(data, human, brief)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        discard_stdout()
        raise cannot_print(problem) from problem


def _print_result(data: object, human: Layout | str, brief: str | Iterable[Sequence[object]]) -> None:
    if _settings.mode is Mode.JSON:
        sys.stdout.writelines(pieces(data))
        sys.stdout.write("\n")
    elif _settings.mode is Mode.QUIET:
        rows = ([brief] if brief else []) if isinstance(brief, str) else brief
        fields = ([row] if isinstance(row, str) else row for row in rows)
        sys.stdout.write("".join("\t".join(to_line(str(field)) for field in row) + "\n" for row in fields))
    elif human:
        _print_lines(text(human) if isinstance(human, str) else human)


def _print_lines(layout: Layout) -> None:
    out = _stdout()
    for line in layout(out.width):
        if out.options.ascii_only:
            line.plain = line.plain.replace(tables.RULE, "-")
        out.print(line, soft_wrap=True)


def cannot_print(problem: OSError) -> AvarcError:
    """The error for a stdout that cannot be written to."""
    return AvarcError(
        "cannot print the result to standard output",
        problem.strerror or str(problem),
        "send it elsewhere; files that the command was asked to write are complete",
    )


def note(message: str) -> None:
    """Print information on stderr, unless --quiet."""
    if _settings.mode is not Mode.QUIET and not _settings.silent:
        _stderr().print("\n".join(tables.wrap(to_line(message), _stderr().width)), soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    if not _settings.silent:
        _stderr().print(_labelled("warning", "bold yellow", to_line(message)), soft_wrap=True)


def error(problem: AvarcError) -> None:
    """Print an error on stderr: what happened, why, how to fix it, and with --debug its traceback."""
    if _settings.silent and problem.exit_code != EXIT_FAILED:  # wrong usage, Ctrl-C: the same in all processes
        return
    if _settings.debug:
        _stderr().file.write(to_line("".join(traceback.format_exception(problem)), keep="\n"))
    _stderr().print(_labelled("error", "bold red", to_line(problem.what)), soft_wrap=True)
    for label, text in (("why", problem.why), ("fix", problem.fix)):
        if text:
            _stderr().print(_labelled(f"  {label}", "bold", to_line(text, keep="\n\t")), soft_wrap=True)


def text(message: str) -> Layout:
    """Running text."""
    return tables.paragraph(str(plain(message)))


def path_and(path: PurePath, what: str) -> Layout:
    """A file or folder that was written, and what is in it."""
    return tables.path_and(str(plain(str(path))), str(plain(what)))


def stack(*parts: Layout | str) -> Layout:
    """Parts one below the other, with an empty line between them."""
    return tables.stack(*(text(part) if isinstance(part, str) else part for part in parts))


def table(
    title: str | PurePath, columns: Sequence[str], rows: Sequence[Sequence[object]], *, optional: str = ""
) -> Layout:
    """A table whose cells are shown as they are. Columns of numbers (or None) are right-aligned.

    Names in the first column, numbers and paths are never broken; other text is, between words, on a narrow terminal.
    The column `optional` is left out where the table does not fit otherwise.
    """
    cells = [[_cell(cell, whole=i == 0) for i, cell in enumerate(row)] for row in rows]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    grid = tables.Grid([_cell(name) for name in columns], cells, right)
    return tables.table(_cell(title), grid, columns.index(optional) if optional else None)


def fields(title: str | PurePath, values: Mapping[str, object]) -> Layout:
    """Names and values, one pair per line."""
    return tables.fields(_cell(title), [(str(plain(name)), _cell(value)) for name, value in values.items()])


def _is_number(cell: object) -> bool:
    return cell is None or isinstance(cell, (int, float))


def _cell(value: object, *, whole: bool = False) -> Cell:
    text = "" if value is None else str(value)
    return Cell(str(plain(text)), whole or isinstance(value, (int, float, PurePath)))


def duration(seconds: float) -> str:
    """Seconds in words: '0.4 s', '2 min 05 s', '3 h 10 min'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class ProgressBar:
    """Progress: a live bar on a terminal, a line every ten seconds elsewhere or as JSON, nothing when quiet.

    Made by `progress`. `update` can be passed to the library as a callback `(done, total)`.
    """

    def __init__(self, description: str, total: int | None, unit: str, clock: Callable[[], float]) -> None:
        from rich import progress as rich_progress

        shown, self._json = _settings.mode is not Mode.QUIET and not _settings.silent, _settings.json_progress
        self._live = _stderr().is_terminal and not _stderr().is_dumb_terminal and shown and not self._json
        self._lines = shown and not self._live
        self._unit, self._clock, self._printed_at, self._note = unit, clock, clock(), ""
        self._used, self._numbers = False, dict[str, float]()
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(bar_width=min(30, max(5, _stderr().width - 62))),  # the rest needs about 62
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[rate]}", markup=False),
            rich_progress.TimeRemainingColumn(compact=True),
            rich_progress.TextColumn("{task.fields[note]}", markup=False),
            console=_stderr(),
            get_time=clock,
            refresh_per_second=4,
            speed_estimate_period=SPEED_WINDOW,
            disable=not self._live,
        )
        self._id = self._bar.add_task(str(plain(description)), total=total, note="", rate="")

    def update(
        self, done: int, total: int | None = None, note: str = "", numbers: Mapping[str, float] | None = None
    ) -> None:
        """Set how much is done so far. The first call's jump does not count towards the speed.

        Args:
            done: units finished, those of an earlier run included.
            total: units in all, if that was not known before.
            note: what to show beside the bar, "accuracy 98.1 %".
            numbers: what the note tells, for JSON lines.
        """
        self._used = True
        self._numbers.update(numbers or {})
        self._note = str(plain(note)) if note else self._note
        self._bar.update(self._id, completed=done, total=total, note=self._note)
        self._bar.update(self._id, rate=self._rate())
        if self._lines and self._clock() - self._printed_at >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def _rate(self) -> str:
        speed = self._bar.tasks[0].speed
        if not speed:
            return ""
        return f"{speed:.1f} {plural(self._unit)}/s" if speed >= 1 else f"{1 / speed:.1f} s per {self._unit}"

    def _print_line(self) -> None:
        self._printed_at = self._clock()
        if self._json:
            self._print_json()
            return
        task = self._bar.tasks[0]
        left = "" if task.time_remaining is None else f"{duration(task.time_remaining)} left"
        done, total = round(task.completed), None if task.total is None else round(task.total)
        of = "" if total is None else f" of {total}"
        what = f"{done}{of} {agreeing(done if total is None else total, self._unit)}"
        parts = [f"{task.description}: {what}", self._rate(), left, self._note]
        _stderr().print(plain(", ".join(p for p in parts if p)), soft_wrap=True)

    def _print_json(self) -> None:
        task = self._bar.tasks[0]
        line = {
            "task": task.description,
            "unit": self._unit,
            "done": round(task.completed),
            "total": None if task.total is None else round(task.total),
            "rate": task.speed,
            "remaining_seconds": task.time_remaining,
        }
        _stderr().file.write(to_json(jsonable(line | self._numbers)) + "\n")

    def _hide_if_unused(self) -> None:
        if not self._used:  # an error before any work: an empty bar above it would mean nothing
            self._bar.update(self._id, visible=False)

    def _finish(self) -> None:
        task = self._bar.tasks[0]
        if self._lines and self._used and self._json:
            self._print_json()
        elif self._lines and self._used:
            done = round(task.completed)
            parts = [f"{done} {agreeing(done, self._unit)} in {duration(task.elapsed or 0.0)}", self._note]
            _stderr().print(plain(f"{task.description}: " + ", ".join(p for p in parts if p)), soft_wrap=True)


@contextmanager
def progress(
    description: str, total: int | None, *, unit: str = "image", clock: Callable[[], float] = time.monotonic
) -> Iterator[ProgressBar]:
    """A progress bar for a with block, with rate and remaining time. Warnings appear above it.

    Args:
        description: what is being done, "encoding".
        total: units in all. None if that is not known yet.
        unit: what is counted, in the singular.
        clock: seconds, for tests.
    """
    bar = ProgressBar(description, total, unit, clock)
    with bar._bar if bar._live else nullcontext():
        try:
            yield bar
        except BaseException:
            bar._hide_if_unused()
            raise
    bar._finish()  # not after an exception: unfinished work is not summed up


def plain(text: str) -> Text:
    """Text of one or more lines without markup; what could affect the terminal is escaped."""
    from rich.text import Text

    return Text(to_line(text, keep="\n\t"))


def _labelled(label: str, style: str, shown: str) -> Text:
    """A label and a message in which everything is escaped that must be (`names.to_line`)."""
    from rich.text import Text

    indent = " " * (len(label) + 2)
    lines = tables.wrap(shown, _stderr().width - len(indent))
    return Text.assemble((f"{label}: ", style), f"\n{indent}".join(lines))


@functools.cache
def _stdout() -> Console:
    return _console(sys.stdout.isatty())


@functools.cache
def _stderr() -> Console:
    return _console(sys.stderr.isatty(), stderr=True)


def _console(is_terminal: bool, *, stderr: bool = False) -> Console:
    from rich.console import Console

    width = None if is_terminal or "COLUMNS" in os.environ else PIPE_WIDTH
    file = cast("IO[str]", _Stderr()) if stderr else None
    return Console(file=file, markup=False, highlight=False, emoji=False, width=width)


class _Stderr:
    """stderr; a message that cannot be written (full disk, closed terminal) is lost, and does not end the work."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()
