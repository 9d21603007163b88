"""--config, an option of every command: options from a file, as Click's `default_map`. Those of the command line win.
--recipe, an option of trainings, is the same with files that are part of avarc; --config wins over it.

A TOML file's keys are the names of options and arguments; a table named like a command holds options of this command
alone. From the run.json of an earlier run, only what `RECORDED` lists is read.
"""

from __future__ import annotations

import difflib
import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.errors import UsageError

REPEATS = "classify"
"""The command whose runs record their options."""
RECORDED = frozenset(
    {
        *("data", "model", "tokenizer", "model_config", "tokenizer_config", "weight_set", "tokenizer_weight_set"),
        *("image_size", "class_names", "class_order", "lora", "lora_alpha", "bank", "precision", "kernels"),
        *("classes", "offset", "batch_size", "orders", "order_seed", "priors", "plan", "score", "combine", "memory"),
        *("steps", "bound", "unsmooth", "captions", "templates", "text_encoder", "aesthetic_score"),
        *("deterministic", "preprocess", "flip", "ten_crop", "crop_range", "sigma", "seed", "dataset", "subset"),
        *("per_class", "limit", "sample", "save_json", "save_likelihood"),
    }
)
"""Parameters of classify that run.json records: what is computed. Never what is written, overwritten or downloaded, or
which paths are trusted, since the file may be another person's."""


def recorded(context: typer.Context) -> dict[str, Any]:
    """The given options of a run, for run.json."""
    two_sided = {param.name for param in context.command.params if getattr(param, "secondary_opts", [])}
    given = {
        key: _plain(context.params[name])
        for key, name in _names(context.command).items()
        if name in RECORDED and opt.is_given(context, name)
    }
    return {key: value for key, value in given.items() if value is not False or key.replace("-", "_") in two_sided}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def apply(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of --config. Raises: UsageError for a file that cannot be read, or with options that do not exist."""
    if path is None or context.resilient_parsing:
        return path
    from avarc_cli import config_file, recipes

    words = context.command_path.split()[1:]
    is_run = path.suffix.lower() == ".json"
    if is_run:
        values = config_file.read_run(path)
        _check_recorded(path, values, context, words)
    else:
        values = _of_command(path, config_file.read_toml(path), context.find_root().command, words)
    own = _parameters(path, values, context)
    recipes.check_length(own, path)
    context.default_map = recipes.overlay(context.default_map or {}, own)
    if is_run:
        console.note(f"options of '{path}': avarc classify {_command_line(values, own.get('data', []))}")
    return path


def apply_recipe(context: typer.Context, name: str | None) -> str | None:
    """Callback of --recipe: as that of --config, which wins over it.

    Raises: UsageError for a recipe that is unknown, or has options that this command has not.
    """
    if name is None or context.resilient_parsing:
        return name
    from avarc_cli import recipes

    recipe, (_, *words) = recipes.find(name), context.command_path.split()
    if words != ["train", recipe.command]:
        raise UsageError(
            f"the recipe '{name}' is for avarc train {recipe.command}",
            f"this is avarc {' '.join(words)}",
            f"write avarc train {recipe.command}, or avarc train --recipe {name}",
        )
    own = _parameters(recipe.path, recipe.values, context)
    context.default_map = recipes.overlay(own, context.default_map or {})
    return name


def _of_command(path: Path, values: Mapping[str, Any], group: Any, words: list[str]) -> dict[str, Any]:
    """The options for a command of the group: those for all its commands, and those in the command's own table."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    commands = getattr(group, "commands", {})
    if unknown := [name for name in tables if name not in commands]:
        near = difflib.get_close_matches(unknown[0], commands, n=3)
        fix = f"did you mean [{'], ['.join(near)}]?" if near else "name a table like a command: [classify], [train.var]"
        raise UsageError(f"'{path}' has a table [{unknown[0]}]", "there is no such command", fix)
    found = {key: value for key, value in values.items() if key not in tables}
    if words and words[0] in tables:
        inner = _of_command(path, tables[words[0]], commands[words[0]], words[1:])
        spelled = {key.replace("_", "-") for key in inner}
        found = {key: value for key, value in found.items() if key.replace("_", "-") not in spelled} | inner
    return found


def _parameters(path: Path, values: Mapping[str, Any], context: typer.Context) -> dict[str, Any]:
    """The values by the name of their parameter. Raises: UsageError for unknown names and wrong types."""
    names, types = _names(context.command), _types(context.command)
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = names.get(key.replace("_", "-"))
        if name is None:
            near = difflib.get_close_matches(key.replace("_", "-"), names, n=3)
            title = " ".join(context.command_path.split()[1:])
            others = f"options of other commands belong in their tables; avarc {title} --help lists these"
            fix = f"did you mean {' or '.join(near)}?" if near else others
            raise UsageError(f"'{path}' has '{key}'", f"{title} has no such option", fix)
        if name in found:
            raise UsageError(f"'{path}' has '{key}' twice", "- and _ mean the same in names", "leave out one")
        found[name] = _checked(path, key, value, types[name])
    return found


def _names(command: Any) -> dict[str, str]:
    """Key in a file -> name of the parameter: long options without dashes, and arguments."""
    names = {}
    for param in command.params:
        long = [option.removeprefix("--") for option in param.opts if option.startswith("--")]
        for key in [param.name.replace("_", "-")] if param.param_type_name == "argument" else long:
            names[key] = param.name
    return {key: name for key, name in names.items() if name != "config"}


def _types(command: Any) -> dict[str, Any]:
    """Name of the parameter -> its type, without None."""
    parameters = inspect.signature(command.callback, eval_str=True).parameters
    return {name: _without_none(p.annotation) for name, p in parameters.items()}


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(annotation) and len(kinds) == 1 else annotation


KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str, int, float), "a text"),
    Path: ((str,), "a path, as a text"),
}


def _checked(path: Path, key: str, value: Any, kind: Any) -> Any:
    """The value as the command line would have it. Raises: UsageError for one of the wrong type."""
    if get_origin(kind) is list:
        values = value if isinstance(value, list) else [value]
        return [_checked(path, key, each, get_args(kind)[0]) for each in values]
    allowed, words = KINDS[kind]
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"'{path}': {key} is {value!r}", f"it must be {words}", f"write {key} = ...")
    return str(value) if kind is str else value


def _check_recorded(path: Path, values: Mapping[str, Any], context: typer.Context, words: list[str]) -> None:
    """Raises: UsageError where this command has no use for a run's options, or they are not such as a run records."""
    if words != [REPEATS]:
        fix = "name a TOML file: docs/config.md"
        raise UsageError(f"'{path}' is not for this command", "only avarc classify repeats a run", fix)
    names = _names(context.command)
    if others := [key for key in values if names.get(key.replace("_", "-")) not in RECORDED]:
        why = "only what a run computes is read from a run.json: no outputs, and nothing that needs your trust"
        raise UsageError(f"'{path}' has the option '{others[0]}'", why, "give it on the command line")


def _command_line(values: Mapping[str, Any], data: list[str]) -> str:
    words = list(data)
    for key, value in values.items():
        if key != "data":
            if isinstance(value, bool):
                words.append(f"--{key}" if value else f"--no-{key}")
            for each in value if isinstance(value, list) else [] if isinstance(value, bool) else [value]:
                words += [f"--{key}", str(each)]
    return shlex.join(words)
