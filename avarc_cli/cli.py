"""The command table and main(). Importing this module does not import torch, so `avarc --help` answers at once."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from avarc_cli import __version__, console
from avarc_cli.commands import cache, captions, classes, data, models, runs, train
from avarc_cli.commands._groups import Command
from avarc_cli.commands.add_class import add_class
from avarc_cli.commands.app import app as serve_app
from avarc_cli.commands.bench import bench
from avarc_cli.commands.classify import classify
from avarc_cli.commands.compare import compare
from avarc_cli.commands.demo import demo
from avarc_cli.commands.doctor import doctor
from avarc_cli.commands.download import download
from avarc_cli.commands.encode import encode
from avarc_cli.commands.evaluate import evaluate
from avarc_cli.commands.explain import explain
from avarc_cli.commands.export import export
from avarc_cli.commands.fid import fid
from avarc_cli.commands.incremental import incremental
from avarc_cli.commands.reconstruct import reconstruct
from avarc_cli.commands.report import report
from avarc_cli.commands.sample import sample
from avarc_cli.commands.tune import tune
from avarc_cli.errors import EXIT_DONE, EXIT_FAILED, AvarcError, Interrupted, first_line, lacks_memory
from avarc_cli.process import EXIT_SIGNAL, StopRequest, discard_stdout, open_standard_streams, stoppable


class _Commands(TyperGroup):
    """Ends an interrupted command with our own message, which says what happens to the work; Typer's does not."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # Typer's Context is a Click Context
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted", fix="run the same command again to continue; finished work is kept"
            ) from None


app = typer.Typer(
    name="avarc",
    cls=_Commands,
    help="Classify images with autoregressive image generators: encode, score, explain.\n\nExample: avarc demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(requested: bool) -> None:
    if requested:
        console.result({"avarc": __version__}, f"avarc {__version__}", brief=__version__)
        raise typer.Exit(EXIT_DONE)


@app.callback()
def _global_options(
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no notes, only the bare result.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="AVARC_DEBUG", help="Show the traceback of every error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
) -> None:
    chosen = console.Mode.JSON if json else console.Mode.QUIET if quiet else console.Mode.HUMAN
    console.configure(mode=chosen, debug=debug, progress=os.environ.get("AVARC_PROGRESS", ""))


for command in (
    demo,
    encode,
    classify,
    tune,
    explain,
    report,
    compare,
    evaluate,
    export,
    sample,
    fid,
    reconstruct,
    add_class,
    incremental,
    serve_app,
    download,
    bench,
    doctor,
):
    app.command(cls=Command)(command)
app.add_typer(classes.app, name="classes")
app.add_typer(cache.app, name="cache")
app.add_typer(captions.app, name="captions")
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.add_typer(train.app, name="train")
app.add_typer(models.app, name="models")


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 failed, 2 wrong usage, 3 done but some inputs unreadable, 128 + n ended by signal n (130: Ctrl-C).

    Args:
        args: the words after `avarc`. None for the process's own.
    """
    # Read when torch loads: how long threads spin before they sleep (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    open_standard_streams()
    console.configure(mode=console.Mode.HUMAN, debug=False, silent=False)
    with stoppable() as request:
        try:
            code = _run(args, request)
            sys.stdout.flush()
        except BrokenPipeError:  # `avarc models | head -1`: the reader closed the pipe
            code = EXIT_FAILED
            discard_stdout()
        except OSError as problem:  # what --help or --version printed cannot be written
            code = EXIT_FAILED
            discard_stdout()
            console.error(console.cannot_print(problem))
    return code


@functools.cache
def _command() -> Any:
    """The commands as Click objects, made once: that takes a tenth of a second."""
    return typer.main.get_command(app)


def _run(args: Sequence[str] | None, request: StopRequest) -> int:
    try:
        _command()(args=None if args is None else list(args), prog_name="avarc")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_DONE
    except BrokenPipeError:
        raise
    except (KeyboardInterrupt, Exception) as problem:  # noqa: BLE001  # whatever it is, it ends with one message
        return _report(problem, request)
    return EXIT_DONE


def _report(problem: BaseException, request: StopRequest) -> int:
    """Show what ended a command; its exit code."""
    if isinstance(problem, Interrupted):
        return _end_interrupted(problem, request)
    # A signal to a whole group ends worker processes as well; that they are gone is no error of its own.
    if isinstance(problem, KeyboardInterrupt) or request.signal is not None:
        return _end_interrupted(Interrupted("interrupted"), request)
    if isinstance(problem, AvarcError):
        console.error(problem)
        return problem.exit_code
    if isinstance(problem, OSError):  # a full disk, a file without permission: not a bug
        console.error(_system_error(problem))
    else:
        console.error(_no_memory(problem) if lacks_memory(problem) else _bug_report(problem))
    return EXIT_FAILED


def _end_interrupted(problem: Interrupted, request: StopRequest) -> int:
    request.is_served = True
    if request.signal is None:
        console.error(problem)
        return problem.exit_code
    console.error(Interrupted(problem.what, problem.why or f"the process received {request.signal.name}", problem.fix))
    return EXIT_SIGNAL + request.signal


def _system_error(problem: OSError) -> AvarcError:
    name = "" if problem.filename is None else f": {problem.filename}"
    shown = AvarcError(
        f"{problem.strerror or problem}{name}",
        why="the operating system refused",
        fix="check that the path exists, may be read or written, and has space left; --debug shows where it happened",
    )
    shown.__cause__ = problem  # what --debug shows
    return shown


def _no_memory(problem: BaseException) -> AvarcError:
    shown = AvarcError(
        "not enough memory",
        first_line(problem),
        "lower --batch-size, --samples or --workers, use a smaller model or --precision bf16, or another --device",
    )
    shown.__cause__ = problem  # what --debug shows
    return shown


def _bug_report(bug: BaseException) -> AvarcError:
    where = traceback.extract_tb(bug.__traceback__)[-1]
    shown = AvarcError(
        f"this is a bug in avarc: {type(bug).__name__}: {bug}",
        why=f"raised in {Path(where.filename).name}, line {where.lineno}, by avarc {__version__}",
        fix="run it again as `avarc --debug ...` and report the traceback",
    )
    shown.__cause__ = bug  # what --debug shows
    return shown
