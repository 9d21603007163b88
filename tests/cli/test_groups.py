"""Groups of options: a dataclass parameter becomes options, and help lists them in sections."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from avarc_cli.cli import main
from avarc_cli.commands._groups import Command, with_option_groups


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option("--width", "-w", help="In pixels.", rich_help_panel="Size")] = 64
    height: Annotated[int | None, typer.Option("--height", help="In pixels.", rich_help_panel="Size")] = None


@pytest.fixture
def run():
    """Runs `draw NAME [--width W] [--height H] [--ink INK]`; returns what the command was called with."""
    calls = []
    app = typer.Typer(rich_markup_mode=None, add_completion=False)

    @app.command(cls=Command)
    @with_option_groups
    def draw(
        context: typer.Context,
        name: Annotated[str, typer.Argument(help="What to draw.")],
        *,
        ink: Annotated[str, typer.Option("--ink", help="Its color.")] = "black",
        size: Size,
    ) -> None:
        """Draw something."""
        calls.append((context.info_name, name, ink, size))

    def call(*args):
        typer.main.get_command(app)(list(args), prog_name="draw", standalone_mode=False)
        return calls.pop() if calls else None

    return call


def test_a_command_gets_its_groups_filled_in(run):
    assert run("cat") == ("draw", "cat", "black", Size())
    assert run("cat", "-w", "8", "--height", "9", "--ink", "red") == ("draw", "cat", "red", Size(width=8, height=9))


def test_help_lists_a_group_under_its_heading(run, capsys):
    run("--help")
    shown = capsys.readouterr().out
    headings = [line for line in shown.splitlines() if line.endswith(":")]
    assert headings == ["Arguments:", "Options:", "Size:"]
    assert shown.index("--ink") < shown.index("Size:") < shown.index("--width") < shown.index("--height")


def test_the_help_of_a_long_command_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["classify", "--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    headings = [line for line in shown if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", "Options:", "Model:", "Scoring:", "Images:"]
