"""avarc train recipes: the published trainings that are included as files."""

from __future__ import annotations

from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show the options of this one, and where they were published.", autocompletion=complete.recipes
        ),
    ] = None,
    *,
    as_json: opt.JsonOpt = False,
) -> None:
    """List the recipes for --recipe: options with which published models were trained.

    Example: avarc train recipes var-d16
    """
    from avarc_cli import recipes as files

    if name is not None:
        found = files.find(name)
        rows = [(key, str(value), found.sources.get(key, "")) for key, value in found.values.items()]
        shown = console.stack(
            console.table(f"avarc train {found.command}: {found.about}", ("option", "value", "source"), rows),
            console.path_and(found.path, "the file"),
        )
        console.result(found, shown, brief=rows)
        return
    every = [files.find(each) for each in files.included()]
    every.sort(key=lambda recipe: recipe.command)
    rows = [(recipe.name, recipe.command, recipe.about) for recipe in every]
    shown = console.stack(
        console.table("Recipes", ("name", "avarc train", "of"), rows),
        "avarc train recipes NAME: its options, and where they were published\n"
        "avarc train --recipe NAME DATA --out FILE: train with them; other options win",
    )
    console.result(every, shown, brief=[[recipe.name] for recipe in every])
