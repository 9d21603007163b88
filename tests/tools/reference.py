"""Write docs/reference/: the commands from their definitions, the Python API from its docstrings.

python tests/tools/reference.py
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import avarc_cli
from avarc_cli.cli import app

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
WRITTEN_BY = "<!-- Written by `python tests/tools/reference.py`; do not edit. -->"
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Source): ?(.*)")
HIDDEN = {"help", "install_completion", "show_completion"}


def pages() -> dict[str, str]:
    """Name of a file in docs/reference -> its text."""
    root: Any = typer.main.get_command(app)
    written = {"commands.md": _commands(root), "api.md": _api()}
    for name, command in root.commands.items():
        written[f"{name}.md"] = _page(name, command)
    return written


def _commands(root: Any) -> str:
    """The page that leads to the others."""
    parts = [
        f"# Commands\n\n{WRITTEN_BY}",
        "Options of `avarc` itself, before the name of a command:",
        _options(root)[1],
    ]
    for title, names in root.sections.items():
        rows = [f"| [`{name}`]({name}.md) | {_cell(_first(root.commands[name]))} |" for name in names.split()]
        parts.append("\n".join([f"## {title}", "", "| command | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _page(name: str, command: Any) -> str:
    """A command, with the commands that are inside it."""
    parts = [f"# avarc {name}\n\n{WRITTEN_BY}", *_command(command)]
    for inner, one in getattr(command, "commands", {}).items():
        parts += [f"## avarc {name} {inner}", *_command(one)]
    return "\n\n".join(parts) + "\n"


def _command(command: Any) -> Iterator[str]:
    for paragraph in inspect.cleandoc(command.help).split("\n\n"):
        text = " ".join(paragraph.split())
        yield f"```sh\n{text.removeprefix('Example: ')}\n```" if text.startswith("Example: ") else _escaped(text)
    yield from _options(command)


def _options(command: Any) -> list[str]:
    """A heading and a table for each section of a command's options."""
    sections: dict[str, list[str]] = {"Arguments": [], "Options": []}
    for param in command.params:
        if param.name in HIDDEN or getattr(param, "hidden", False):
            continue
        is_argument = param.param_type_name == "argument"
        names = [param.name.upper()] if is_argument else [*param.opts, *param.secondary_opts]
        title = getattr(param, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
        shown = ", ".join(f"`{name}`" for name in names)
        sections.setdefault(title, []).append(f"| {shown} | {_cell(param.help or '')}{_default(param)} |")
    parts = []
    for title, rows in sections.items():
        if rows:
            kind = "argument" if title == "Arguments" else "option"
            parts += [f"**{title}**", "\n".join([f"| {kind} | |", "|---|---|", *rows])]
    return parts


def _default(param: Any) -> str:
    if param.required:
        return " *Required.*"
    if param.default is True and param.secondary_opts:
        return f" *Default:* `{param.opts[0]}`."
    if param.default is None or isinstance(param.default, bool) or param.default == "" or callable(param.default):
        return ""
    return f" *Default:* `{param.default}`."


def _first(command: Any) -> str:
    return str(command.get_short_help_str(limit=1000))


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    """As Markdown that shows these characters. Text between backticks stays."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([*\[])", r"\\\1", piece).replace("<", "&lt;") for piece in pieces[::2]]
    return "`".join(pieces)


def _api() -> str:
    parts = [
        f"# Python API: reference\n\n{WRITTEN_BY}",
        "All names are imported from `avarc_cli`. [Examples](../python-api.md).",
    ]
    for name in sorted(avarc_cli.__all__, key=str.casefold):
        item = getattr(avarc_cli, name)
        if inspect.isclass(item):
            parts += _class(name, item)
        elif callable(item):
            parts += [f"## {name}", *_function(name, item)]
    return "\n\n".join(parts) + "\n"


def _class(name: str, item: type) -> Iterator[str]:
    yield f"## {name}"
    yield from _docstring(item)
    if rows := [f"| `{field}` | `{kind}` | {_cell(about)} |" for field, kind, about in _fields(item)]:
        yield "\n".join(["| field | | |", "|---|---|---|", *rows])
    for method, value in vars(item).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if method.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        yield f"### {name}.{method}"
        yield from _docstring(function) if isinstance(value, property) else _function(method, function)


def _function(name: str, function: Any) -> Iterator[str]:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
    shown: list[str] = []
    is_keyword = False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not is_keyword:
            shown, is_keyword = [*shown, "*"], True
        star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        value = getattr(p.default, "__name__", "...") if callable(p.default) else repr(p.default)
        default = "" if p.default is p.empty else f" = {value}".replace("<lambda>", "...")
        shown.append(f"{star}{p.name}: {_annotation(p.annotation)}{default}")
    result = _annotation(inspect.signature(function).return_annotation)
    line = f"{name}({', '.join(shown)}) -> {result}"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"    {one},\n" for one in shown) + f") -> {result}"
    yield f"```text\n{line}\n```"
    yield from _docstring(function)


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _fields(item: type) -> Iterator[tuple[str, str, str]]:
    """Name, type and description of the public fields of a dataclass: the string, or the comment, after them."""
    source = textwrap.dedent(inspect.getsource(item))
    body, lines = ast.parse(source).body[0].body, source.splitlines()  # type: ignore[attr-defined]
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or ast.unparse(node.target).startswith("_"):
            continue
        comment = lines[node.lineno - 1].partition("  # ")[2] if node.lineno == node.end_lineno else ""
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        yield ast.unparse(node.target), ast.unparse(node.annotation), after.value.value if is_text else comment


def _docstring(item: Any) -> Iterator[str]:
    """The paragraphs of a docstring; its sections as lists."""
    for paragraph in inspect.cleandoc(item.__doc__ or "").split("\n\n"):
        if paragraph.startswith("    "):
            yield paragraph
            continue
        text: list[str] = []
        for line in paragraph.splitlines():
            section = SECTION.fullmatch(line)
            if section:
                text += ["", f"**{section[1]}.** {_escaped(section[2])}".rstrip(), ""][0 if text else 1 :]
            elif entry := re.fullmatch(r" {4}(\w+(?:, \w+)*): (.*)", line):
                text.append(f"- `{entry[1]}`: {_escaped(entry[2])}")
            else:
                text.append(_escaped(line.strip()) if not line.startswith("     ") else "  " + _escaped(line.strip()))
        yield "\n".join(text).strip("\n")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    written = pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        (FOLDER / name).write_text(text, "utf-8")
    print(f"{len(written)} pages in {FOLDER}")


if __name__ == "__main__":
    main()
