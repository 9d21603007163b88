"""The command table and main(). Importing this module does not import torch, so `avarc --help` answers at once.

A command that is run is the only one that is imported: to import all and to make their options takes a quarter of a
second.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from avarc_cli import __version__, console
from avarc_cli.commands._groups import Command, Group
from avarc_cli.errors import EXIT_DONE, EXIT_FAILED, AvarcError, Interrupted, first_line, lacks_memory
from avarc_cli.process import EXIT_SIGNAL, StopRequest, discard_stdout, open_standard_streams, stoppable

SECTIONS = {
    "Start": "demo app doctor bench",
    "Models": "models download train",
    "Images": "data encode cache captions",
    "Classify": "classify tune runs export",
    "Look at results": "explain report compare evaluate",
    "Add classes": "add-class classes incremental",
    "Generate": "sample fid reconstruct",
}
"""Title -> names of commands. A command is a function of its name in the module of its name, ..."""
GROUPS = ("classes", "cache", "captions", "data", "runs", "train", "models")
"""... or `app`, which has commands of its own."""
HELP = ("-h", "--help")
NAMES = tuple(name for names in SECTIONS.values() for name in names.split())


class _Commands(Group):
    """Ends an interrupted command with our own message, which says what happens to the work; Typer's does not."""

    sections: ClassVar = SECTIONS

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # Typer's Context is a Click Context
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted", fix="run the same command again to continue; finished work is kept"
            ) from None


def make_app(names: Iterable[str] = NAMES) -> typer.Typer:
    """The program with these commands and groups."""
    made = typer.Typer(
        name="avarc",
        cls=_Commands,
        help="Classify images with autoregressive image generators: encode, score, explain.\n\nExample: avarc demo",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": list(HELP)},
    )
    made.callback()(_global_options)
    for name in names:
        function = name.replace("-", "_")
        module = import_module(f"avarc_cli.commands.{function}")
        if name in GROUPS:
            made.add_typer(module.app, name=name)
        else:
            made.command(cls=Command)(getattr(module, function))
    return made


def __getattr__(name: str) -> Any:
    """`app`, the program with all commands, is made when it is asked for."""
    if name != "app":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return globals().setdefault("app", make_app())


def _show_version(requested: bool) -> None:
    if requested:
        console.result({"avarc": __version__}, f"avarc {__version__}", brief=__version__)
        raise typer.Exit(EXIT_DONE)


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


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 failed, 2 wrong usage, 3 done but some inputs unreadable, 128 + n ended by signal n (130: Ctrl-C).

    Args:
        args: the words after `avarc`. None for the process's own.
    """
    # Read when torch loads: how long threads spin before they sleep (docs/execution.md).
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
    if args is None and "triton" not in sys.modules:  # its bindings would report what is left as leaks
        gc.freeze()  # else Python looks for cycles among all of torch's objects before it ends, for 0.2 s
    return code


def _named(words: Sequence[str]) -> str:
    """The command that is run; "" where others must be known, such as those that a file of options is for as well."""
    if any(word.partition("=")[0] == "--config" for word in words):
        return ""
    if words and words[0] in HELP:
        return ""
    return next((word for word in words if not word.startswith("-")), "")  # options before it have no values


@functools.cache
def _command(name: str) -> Any:
    """The command of this name inside the program, as Click objects; the whole program for a name that there is not."""
    return typer.main.get_command(make_app([name]) if name in NAMES else make_app())


def _run(args: Sequence[str] | None, request: StopRequest) -> int:
    try:
        words = list(sys.argv[1:] if args is None else args)
        _command(_named(words))(args=words, prog_name="avarc")
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
