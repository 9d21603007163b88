"""avarc evaluate: a table of models by datasets, from a protocol."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.errors import EXIT_UNREADABLE, UsageError
from avarc_cli.settings import check_device, check_exists
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.evaluation.evaluate import Cell
    from avarc_cli.evaluation.protocol import Protocol


def evaluate(
    protocol: Annotated[
        str | None,
        typer.Argument(
            help="A protocol's name (--list) or its file (.toml).",
            show_default=False,
            autocompletion=complete.protocols,
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder below which the protocol's images are.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for runs and tables; continues earlier work.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the protocols that are included.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the protocol's file, to make one of your own.")] = False,
    per_class: Annotated[
        int | None, typer.Option("--per-class", min=1, help="For a trial: images of each class at most.")
    ] = None,
    device: opt.DeviceOpt = "auto",
    allow_outside: opt.AllowOutsideOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Evaluate models on datasets, as a protocol says, next to published values.

    Each cell of the table is a run; repeat the command to continue. Cells that lack data or weights are reported.

    Example: avarc evaluate digits --out runs/digits
    """
    from avarc_cli.evaluation import protocol as protocols

    if list_all:
        _list({name: protocols.read(path) for name, path in protocols.included().items()})
        return
    if protocol is None:
        raise UsageError("which protocol?", fix="name one that avarc evaluate --list shows, or a .toml file")
    path = protocols.find(protocol)
    asked = protocols.read(path)
    if show:
        console.result({"file": path}, path.read_text("utf-8").rstrip("\n"), brief=str(path))
        return
    if out is None:
        raise UsageError("nowhere to write to", "runs and tables go into a folder", "add --out DIR")
    check_device(device)
    check_exists(data, "--data")
    if asked.needs_data and data is None:
        names = ", ".join(str(column.data) for column in asked.columns if column.data)
        raise UsageError(f"'{protocol}' needs images", f"it reads {names}", "name the folder they are in: --data ROOT")
    cells = _run(asked, out, data, device, per_class, allow_outside)
    _show(asked, cells, out)
    if any(cell.metrics is None or cell.unreadable for cell in cells):
        raise typer.Exit(EXIT_UNREADABLE)


def _run(
    asked: Protocol, out: Path, data: Path | None, device: str, per_class: int | None, allow_outside: bool
) -> list[Cell]:
    from avarc_cli.evaluation.evaluate import Setting, check_folder
    from avarc_cli.evaluation.evaluate import evaluate as run
    from avarc_cli.evaluation.write_table import write_tables

    check_folder(out)
    setting = Setting(
        out=out,
        data=data,
        device=device,
        per_class=per_class,
        allow_outside=allow_outside,
        progress=console.progress,
        training=partial(console.progress, unit="step"),
        say=console.note,
    )
    cells = run(asked, setting)
    write_tables(asked, cells, out)
    return cells


def _list(found: dict[str, Protocol]) -> None:
    rows = [[name, each.title, "" if each.needs_data else "included"] for name, each in found.items()]
    data = {name: {"title": each.title, "about": each.about} for name, each in found.items()}
    console.result(data, console.table("", ["protocol", "what it is", "data"], rows), brief=[[row[0]] for row in rows])


def _show(asked: Protocol, cells: list[Cell], out: Path) -> None:
    from avarc_cli.evaluation import write_table

    for names, reason in write_table.not_run(cells):
        console.warn(f"not run: {names}: {reason}")
    for cell in cells:
        if cell.unreadable:
            where = f"{cell.row.name}/{cell.column.name}"
            console.warn(f"{where}: left out {counted(cell.unreadable, 'unreadable image')}")
    parts = [_table(column.title or column.name, lines) for column, lines in write_table.tables(asked, cells)]
    parts.append(console.path_and(out, "table.csv, table.md, table.html, cells/, tokens/"))
    data = write_table.as_data(asked, cells) | {"out": out}
    accuracies = [(c.row.name, c.column.name, (c.metrics or {}).get("accuracy") or "") for c in cells]
    console.result(data, console.stack(*parts), brief=accuracies)


def _table(title: str, lines: list[list[str]]) -> Any:
    """A column's table, without those of its own columns that are empty."""
    from avarc_cli.evaluation.write_table import COLUMNS

    kept = [i for i in range(len(COLUMNS)) if i < 2 or any(line[i] for line in lines)]
    rows = [[line[i] for i in kept] for line in lines]
    columns = [COLUMNS[i] for i in kept]
    return console.table(title, columns, rows, optional="images" if "images" in columns else "")
