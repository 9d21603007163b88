"""The options of every command and their defaults, as recorded in options.json.

A difference is a change that users notice: update the documentation, CHANGELOG.md and the record together. To record:
python tests/cli/test_options.py
"""

import json
from pathlib import Path

import typer

from avarc_cli.cli import app

RECORD = Path(__file__).with_name("options.json")
PLAIN = (bool, int, float, str, type(None))


def commands(command, words=()):
    yield " ".join(words), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


def default(param):
    if param.required:
        return "required"
    return param.default if isinstance(param.default, PLAIN) else str(param.default)


def option(param):
    return " ".join([*param.opts, *param.secondary_opts])


def options():
    """Command -> option -> default."""
    return {
        words: {option(param): default(param) for param in command.params}
        for words, command in commands(typer.main.get_command(app))
    }


def test_options_and_defaults_are_as_recorded():
    assert options() == json.loads(RECORD.read_text())


if __name__ == "__main__":
    RECORD.write_text(json.dumps(options(), indent=1) + "\n")
