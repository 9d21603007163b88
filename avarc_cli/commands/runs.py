"""avarc runs: join the shards of a classification run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _summary
from avarc_cli.commands._groups import Command, Group
from avarc_cli.words import counted

app = typer.Typer(cls=Group, no_args_is_help=True)


@app.callback()
def _runs() -> None:
    """Join the shards of a classification run.

    Example: avarc runs merge run-1 run-2 --out run
    """


@app.command(cls=Command)
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The run folders to join, two or more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the finished run, a new one.")],
    as_json: opt.JsonOpt = False,
) -> None:
    """Join shards that avarc classify --shard wrote to folders of their own.

    The result is the finished run that one process would have made; the folders of the shards stay. Shards that share
    one folder need no merge: the last one finishes the run.

    Example: avarc runs merge run-1 run-2 --out run
    """
    from avarc_cli.results.merge import merge_runs

    with console.progress("joining", 0) as bar:
        metrics = merge_runs(runs, out, progress=bar.update)
    said = console.path_and(out, f"{counted(metrics['images'], 'image')} of {counted(len(runs), 'shard')}")
    data = {"out": out, "sources": runs, "metrics": metrics}
    console.result(data, console.stack(console.fields("", _summary.numbers(metrics)), said), brief=str(out))
