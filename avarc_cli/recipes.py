"""Recipes of trainings: TOML files with the options of one command of `avarc train`. Nothing here imports torch.

A file has one table, named like its command, and may go on from another one:

    about = "VAR d16, 256 pixels"
    extends = "var"        # the name of a recipe that is included, or a path next to this file

    [train.var]
    depth = 16             # arXiv:2404.02905, table 6
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avarc_cli import toml_file
from avarc_cli.errors import UsageError
from avarc_cli.settings import check_file
from avarc_cli.zoo.local_files import ASSETS

FOLDER = ASSETS / "recipes"
LIST = "avarc train recipes lists those that are included"
_MOST_EXTENDED = 8  # files; a loop should end
_ALTERNATIVES = {"steps": "epochs", "epochs": "steps"}  # each says how long a training is
_SOURCED = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=[^#]*#\s*(.*\S)")


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """A recipe with what it goes on from."""

    name: str
    """As the user wrote it."""
    path: Path
    about: str
    """A line; "" where the file has none."""
    command: str
    """Of `avarc train`."""
    values: dict[str, Any]
    """By the name of an option."""
    sources: dict[str, str]
    """What the file says beside a value: where it was published."""


def included() -> list[str]:
    """Names of the recipes that are part of avarc."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(name: str) -> TrainingRecipe:
    """A recipe by its name, or by the path of its file.

    Raises: UsageError for one that is unknown or not as it should be. Whether the command has these options is not
        checked here.
    """
    return _read(name, _path(name, Path()), 0)


def overlay(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Values of two files by the names of options, those of the second one first; epochs replace steps, and reverse."""
    kept = {key: value for key, value in lower.items() if _ALTERNATIVES.get(key) not in upper}
    return {**kept, **upper}


def check_length(values: Mapping[str, Any], path: Path) -> None:
    """Raises: UsageError where one file gives a training two lengths."""
    if _ALTERNATIVES.keys() <= values.keys():
        raise UsageError(f"'{path}' has steps and epochs", "each says how long the training is", "leave out one")


def _path(name: str, beside: Path) -> Path:
    """Where the recipe of that name is."""
    if name in included():
        return FOLDER / f"{name}.toml"
    if name.endswith(".toml") or Path(name).name != name:
        return beside / name
    close = difflib.get_close_matches(name.lower(), included(), n=3)
    fix = f"did you mean {', '.join(close)}? {LIST}" if close else f"{LIST}; name a file of your own with .toml"
    raise UsageError(f"there is no recipe '{name}'", fix=fix)


def _read(name: str, path: Path, depth: int) -> TrainingRecipe:
    check_file(path, "a recipe")
    content = toml_file.read(path, fix="write a recipe as in docs/recipes.md")
    tables = content.get("train")
    if others := [key for key in content if key not in ("about", "extends", "train")]:
        why = "a recipe has about, extends, and one table, named like its command"
        raise UsageError(f"'{path}' has '{others[0]}' outside of a table", why, "put options into [train.var], say")
    if not isinstance(tables, dict) or len(tables) != 1 or not isinstance(next(iter(tables.values())), dict):
        why = "it holds the options of one command of avarc train"
        raise UsageError(f"'{path}' is not a recipe", why, "write them in one table, named like it: [train.var]")
    for key in ("about", "extends"):
        if not isinstance(content.get(key, ""), str):
            raise UsageError(f"'{path}': {key} is {content[key]!r}", "it must be a text")
    (command, values), *_ = tables.items()
    values = {key.replace("_", "-"): value for key, value in values.items()}
    check_length(values, path)
    found = TrainingRecipe(
        name=name,
        path=path,
        about=content.get("about", ""),
        command=command,
        values=values,
        sources=_sources(path),
    )
    return _extended(found, content["extends"], depth) if "extends" in content else found


def _extended(recipe: TrainingRecipe, name: str, depth: int) -> TrainingRecipe:
    """The recipe on top of another one."""
    if depth == _MOST_EXTENDED:
        raise UsageError(f"'{recipe.path}' extends too many recipes", "one of them may extend itself")
    base = _read(name, _path(name, recipe.path.parent), depth + 1)
    if base.command != recipe.command:
        raise UsageError(
            f"'{recipe.path}' extends a recipe of another command",
            f"'{name}' is for avarc train {base.command}, this one for avarc train {recipe.command}",
        )
    return TrainingRecipe(
        name=recipe.name,
        path=recipe.path,
        about=recipe.about or base.about,
        command=recipe.command,
        values=overlay(base.values, recipe.values),
        sources={**{k: v for k, v in base.sources.items() if k not in recipe.values}, **recipe.sources},
    )


def _sources(path: Path) -> dict[str, str]:
    """The comments behind values, by the name of the option."""
    lines = path.read_text("utf-8-sig").splitlines()
    found = [match for line in lines if (match := _SOURCED.fullmatch(line))]
    return {match[1].replace("_", "-"): match[2] for match in found}
