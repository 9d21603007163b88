"""avarc classes: the classes in a class bank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands._groups import Command, Group
from avarc_cli.commands._options import JsonOpt
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.bank import Addition, Bank

app = typer.Typer(
    cls=Group,
    help="List, show, remove and rename the classes of a bank.\n\nExample: avarc classes list --bank animals",
    no_args_is_help=True,
)

BankOpt = Annotated[Path, typer.Option("--bank", help="The class bank: a folder created by avarc add-class.")]
NameArg = Annotated[str, typer.Argument(help="An added class.", autocompletion=complete.bank_classes)]


@app.command("list", cls=Command)
def list_classes(bank: BankOpt, as_json: JsonOpt = False) -> None:
    """List the added classes, in the order of their ids.

    Example: avarc classes list --bank animals
    """
    from avarc_cli import bank as banks

    read = banks.read(bank)
    rows = [
        [a.name, a.method, a.facts.get("images"), a.facts.get("started from"), f"{a.offset:+.2f}", read.state(a)]
        for a in read.additions
    ]
    columns = ["class", "method", "images", "started from", "offset (nats)", "file"]
    title = f"{counted(len(rows), 'class')} added to {read.base.name} ({read.base.sha256[:12]})"
    data = {"bank": bank, "base": read.base, "classes": [_facts(read, a) for a in read.additions]}
    console.result(data, console.table(title, columns, rows), brief=[(a.name,) for a in read.additions])


@app.command(cls=Command)
def show(name: NameArg, bank: BankOpt, as_json: JsonOpt = False) -> None:
    """Show all details of one added class.

    Example: avarc classes show okapi --bank animals
    """
    from avarc_cli import bank as banks

    read = banks.read(bank)
    addition = read.find(name)
    facts = _facts(read, addition)
    console.result(facts, console.fields(addition.name, facts), brief=addition.name)


@app.command(cls=Command)
def remove(
    names: Annotated[list[str], typer.Argument(help="Added classes.", autocompletion=complete.bank_classes)],
    bank: BankOpt,
    as_json: JsonOpt = False,
) -> None:
    """Remove classes from a bank; the others score as before.

    Example: avarc classes remove okapi --bank animals
    """
    from avarc_cli.incremental import editing

    left = editing.remove(bank, names)
    message = f"removed {', '.join(names)}; left in {bank}: {counted(len(left.additions), 'class')}"
    console.result({"bank": bank, "removed": names, "classes": [a.name for a in left.additions]}, message)


@app.command(cls=Command)
def rename(
    name: NameArg,
    new: Annotated[str, typer.Argument(help="Its new name.")],
    bank: BankOpt,
    as_json: JsonOpt = False,
) -> None:
    """Rename an added class; its scores stay as they are.

    Example: avarc classes rename okapi "forest giraffe" --bank animals
    """
    from avarc_cli.incremental import editing

    changed = editing.rename(bank, name, new)
    console.result({"bank": bank, "classes": [a.name for a in changed.additions]}, f"'{name}' is now '{new}'")


def _facts(read: Bank, addition: Addition) -> dict[str, object]:
    """An added class as data: its file and the state of it, and how it was fitted."""
    own = {"name": addition.name, "method": addition.method, "offset": addition.offset}
    return own | dict(addition.facts) | {"file": read.path / addition.file, "state": read.state(addition)}
