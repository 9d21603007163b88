"""All terminal output: results on stdout, everything else on stderr, in human, JSON or quiet mode.

Text from outside (file names, class names) is never interpreted as markup, and control characters in it are escaped.
rich is imported with the first thing printed.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import io
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from avarc_cli.errors import AvarcError
from avarc_cli.names import to_json, to_line
from avarc_cli.process import discard_stdout

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

PIPE_WIDTH = 240  # columns of a table in a file or a pipe, where no line needs to be wrapped
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


_settings = _Settings()


def configure(mode: Mode | None = None, debug: bool | None = None) -> None:
    """Set how everything from now on is printed. None leaves a setting unchanged."""
    if mode is not None:
        _settings.mode = mode
    if debug is not None:
        _settings.debug = debug
    _stdout.cache_clear()
    _stderr.cache_clear()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal must not crash a run


def mode() -> Mode:
    """The current mode."""
    return _settings.mode


def result(data: object, human: RenderableType | None = None, brief: str | Sequence[Sequence[object]] = "") -> None:
    """Print a command's result on stdout.

    Args:
        data: what --json prints: mappings, sequences, dataclasses, paths, arrays and numbers (nan becomes null).
        human: what people see: text, or a `table`, `fields` or `stack`.
        brief: what --quiet prints, for scripts: one line, or lines of fields with tabs between them. Empty for nothing.
    Raises: AvarcError when stdout cannot be written to; BrokenPipeError when nobody reads it any more.
    """
    try:
        _print_result(data, human, brief)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        discard_stdout()
        raise cannot_print(problem) from problem


def _print_result(data: object, human: RenderableType | None, brief: str | Sequence[Sequence[object]]) -> None:
    if _settings.mode is Mode.JSON:
        sys.stdout.write(to_json(_jsonable(data), indent=2) + "\n")
    elif _settings.mode is Mode.QUIET:
        rows = ([brief] if brief else []) if isinstance(brief, str) else brief
        fields = ([row] if isinstance(row, str) else row for row in rows)
        sys.stdout.write("".join("\t".join(to_line(str(field)) for field in row) + "\n" for row in fields))
    elif isinstance(human, str):
        _stdout().print(plain(human), soft_wrap=True)
    elif human is not None:
        _stdout().print(human)


def cannot_print(problem: OSError) -> AvarcError:
    """The error for a stdout that cannot be written to."""
    return AvarcError(
        "cannot print the result to standard output",
        problem.strerror or str(problem),
        "send it elsewhere; files that the command was asked to write are complete",
    )


def note(message: str) -> None:
    """Print information on stderr, unless --quiet."""
    if _settings.mode is not Mode.QUIET:
        _stderr().print(to_line(message), soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    _stderr().print(_labelled("warning", "bold yellow", to_line(message)), soft_wrap=True)


def error(problem: AvarcError) -> None:
    """Print an error on stderr: what happened, why, how to fix it, and with --debug its traceback."""
    if _settings.debug:
        _stderr().file.write(to_line("".join(traceback.format_exception(problem)), keep="\n"))
    _stderr().print(_labelled("error", "bold red", to_line(problem.what)), soft_wrap=True)
    for label, text in (("why", problem.why), ("fix", problem.fix)):
        if text:
            _stderr().print(_labelled(f"  {label}", "bold", text), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> RenderableType:
    """A table whose cells are shown as they are. Columns of numbers (or None) are right-aligned.

    The first column names the row and is never wrapped; the others wrap on a narrow terminal.
    """
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, name in enumerate(columns):
        numbers = all(row[i] is None or isinstance(row[i], (int, float)) for row in rows)
        justify: Literal["left", "right"] = "right" if rows and numbers else "left"
        shown.add_column(plain(name), justify=justify, no_wrap=i == 0, overflow="fold")
    for row in rows:
        shown.add_row(*(plain("" if cell is None else str(cell)) for cell in row))
    return _titled(title, shown)


def fields(title: str, values: Mapping[str, object]) -> RenderableType:
    """Names and values, one pair per line."""
    from rich.table import Table

    shown = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in values.items():
        shown.add_row(plain(name), plain(str(value)))
    return _titled(title, shown)


def _titled(title: str, table: Table) -> RenderableType:
    """The table below its title; a Table's own title would be wrapped to the width of the table."""
    from rich.console import Group

    heading = plain(title)
    heading.stylize("italic")
    return Group(heading, table) if title else table


def stack(*parts: RenderableType) -> RenderableType:
    """Parts one below the other, with an empty line between them."""
    from rich.console import Group

    spaced = [x for part in parts for x in (plain(part) if isinstance(part, str) else part, plain(""))]
    return Group(*spaced[:-1])


def duration(seconds: float) -> str:
    """Seconds in words: '0.4 s', '2 min 05 s', '3 h 10 min'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class ProgressBar:
    """Progress: a live bar on a terminal, a line every ten seconds elsewhere, nothing when quiet.

    Made by `progress`. `update` can be passed to the library as a callback `(done, total)`.
    """

    def __init__(self, description: str, total: int | None, unit: str, clock: Callable[[], float]) -> None:
        from rich import progress as rich_progress

        self._live = _stderr().is_terminal and not _stderr().is_dumb_terminal and _settings.mode is not Mode.QUIET
        self._lines = not self._live and _settings.mode is not Mode.QUIET
        self._unit, self._clock, self._printed_at, self._note = unit, clock, clock(), ""
        self._used = False
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(bar_width=30),
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

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Set how much is done so far. The first call's jump does not count towards the speed.

        Args:
            done: units finished, those of an earlier run included.
            total: units in all, if that was not known before.
            note: what to show beside the bar, "accuracy 98.1 %".
        """
        self._used = True
        self._note = str(plain(note)) if note else self._note
        self._bar.update(self._id, completed=done, total=total, note=self._note)
        self._bar.update(self._id, rate=self._rate())
        if self._lines and self._clock() - self._printed_at >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def _rate(self) -> str:
        speed = self._bar.tasks[0].speed
        if not speed:
            return ""
        return f"{speed:.1f} {self._unit}/s" if speed >= 1 else f"{1 / speed:.1f} s per {self._unit.removesuffix('s')}"

    def _print_line(self) -> None:
        self._printed_at = self._clock()
        task = self._bar.tasks[0]
        left = "" if task.time_remaining is None else f"{duration(task.time_remaining)} left"
        of = "" if task.total is None else f" of {task.total:.0f}"
        parts = [f"{task.description}: {task.completed:.0f}{of} {self._unit}", self._rate(), left, self._note]
        _stderr().print(plain(", ".join(p for p in parts if p)), soft_wrap=True)

    def _hide_if_unused(self) -> None:
        if not self._used:  # an error before any work: an empty bar above it would mean nothing
            self._bar.update(self._id, visible=False)

    def _finish(self) -> None:
        task = self._bar.tasks[0]
        if self._lines:
            parts = [f"{task.completed:.0f} {self._unit} in {duration(task.elapsed or 0.0)}", self._note]
            _stderr().print(plain(f"{task.description}: " + ", ".join(p for p in parts if p)), soft_wrap=True)


@contextmanager
def progress(
    description: str, total: int | None, *, unit: str = "images", clock: Callable[[], float] = time.monotonic
) -> Iterator[ProgressBar]:
    """A progress bar for a with block, with rate and remaining time. Warnings appear above it.

    Args:
        description: what is being done, "encoding".
        total: units in all. None if that is not known yet.
        unit: what is counted, in the plural.
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


def _labelled(label: str, style: str, message: str) -> Text:
    from rich.text import Text

    indent = " " * (len(label) + 2)
    return Text.assemble((f"{label}: ", style), plain(message.replace("\n", "\n" + indent)))


@functools.cache
def _stdout() -> Console:
    from rich.console import Console

    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(markup=False, highlight=False, emoji=False, width=PIPE_WIDTH if wide else None)


@functools.cache
def _stderr() -> Console:
    from rich.console import Console

    return Console(file=cast("IO[str]", _Stderr()), markup=False, highlight=False, emoji=False)


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


def _jsonable(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return _jsonable(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and their scalars; numpy and torch are not imported
        return _jsonable(value.tolist())
    raise TypeError(f"a result holds a {type(value).__name__}, which JSON cannot")
