"""Options that several commands share, declared once as the fields of a dataclass, and help in named sections."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from avarc_cli.commands import _config
from avarc_cli.errors import UsageError

Parameter = inspect.Parameter
NO_OPTION = "no option"
"""In the metadata of a field that is no option; commands set it by `dataclasses.replace`."""


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses of options as parameters.

    Typer sees one option for every field of such a dataclass; the command gets the dataclass filled in:

        @dataclass(frozen=True, kw_only=True)
        class Size:
            width: Annotated[int, typer.Option("--width", help="In pixels.")] = 64

        @with_option_groups
        def draw(size: Size) -> None: ...  # avarc draw --width 32
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: p.annotation for name, p in signature.parameters.items() if is_dataclass(p.annotation)
    }

    @functools.wraps(command)
    def run(**values: Any) -> None:
        filled = {name: group(**{f.name: values.pop(f.name) for f in _shown(group)}) for name, group in groups.items()}
        command(**values, **filled)

    expanded = [option for p in signature.parameters.values() for option in _options(p)]
    run.__signature__ = signature.replace(parameters=expanded)  # type: ignore[attr-defined]  # what Typer reads
    return run


def _options(parameter: Parameter) -> list[Parameter]:
    """A parameter as Typer should see it: by keyword, and a group field by field."""
    group = parameter.annotation
    if not is_dataclass(group):
        return [parameter.replace(kind=Parameter.KEYWORD_ONLY)]
    types = get_type_hints(group, include_extras=True)
    return [
        Parameter(
            f.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if f.default is MISSING else f.default,
            annotation=types[f.name],
        )
        for f in _shown(group)
    ]


def _shown(group: Any) -> list[Field[Any]]:
    """The fields that are options."""
    return [f for f in fields(group) if not f.metadata.get(NO_OPTION)]


class Command(TyperCommand):
    """A command with the option --config, whose help lists options under their `rich_help_panel`, as plain text that
    fits 80 columns.
    """

    def __init__(self, *args: Any, params: list[Any] | None = None, **settings: Any) -> None:
        super().__init__(*args, params=[*(params or []), _config_option(settings.get("name"))], **settings)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # a Click Context
        if "" in args or any(word.endswith("=") for word in args):
            _check_not_empty(self, self.make_parser(ctx).parse_args(args=list(args))[0])
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # a Click Context
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                plain = "Arguments" if param.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(param, "rich_help_panel", None) or plain, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _check_not_empty(command: Command, given: Mapping[str, Any]) -> None:
    """Raises: UsageError for an empty argument or path, which Python would take for the current folder.

    Args:
        given: the words that were given, by name of the parameter.
    """
    signature = inspect.signature(command.callback or (lambda: None), eval_str=True)
    for param in command.params:
        words, is_argument = given.get(param.name or ""), param.param_type_name == "argument"
        is_path = param.name in signature.parameters and _names_path(signature.parameters[param.name].annotation)
        if (is_argument or is_path) and (words == "" or (isinstance(words, list | tuple) and "" in words)):
            name = "an argument" if is_argument else param.opts[0]
            fix = "write . for the current folder" if is_path else ""
            raise UsageError(f"{name} is empty", "a variable of the shell may have no value", fix)


def _names_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_names_path, get_args(annotation)))


class Group(TyperGroup):
    """A group of commands whose help lists them with their whole first sentence, in `sections` if there are some."""

    sections: ClassVar[Mapping[str, str]] = {}
    """Title -> names of commands, separated by spaces. The commands that are in none are listed last."""

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # a Click Context
        listed = {name for names in self.sections.values() for name in names.split()}
        rest = " ".join(name for name in self.list_commands(ctx) if name not in listed)
        column = max(map(len, self.commands))
        for title, names in [*self.sections.items(), ("Commands", rest)]:
            known = [name for name in names.split() if name in self.commands]
            rows = [(f"{name:{column}}", _first_sentence(self.commands[name])) for name in known]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _first_sentence(command: Any) -> str:
    return str(command.get_short_help_str(limit=1000))


@functools.cache
def _config_option(command_name: str | None) -> Any:
    """The option that every command has, as Typer makes it of a function's parameter."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def command(
        config: Annotated[
            Path | None,
            typer.Option(
                "--config",
                callback=_config.apply,
                is_eager=True,
                expose_value=False,
                help="TOML file with options by name; those given here win.",
            ),
        ] = None,
    ) -> None: ...

    option: Any = typer.main.get_command(app).params[0]
    if command_name == _config.REPEATS:
        option.help += " Or run.json, to repeat a run."
    return option
