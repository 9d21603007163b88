"""Options of commands in files: a TOML file that a user wrote, or the run.json of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avarc_cli import toml_file
from avarc_cli.errors import UsageError
from avarc_cli.names import from_json
from avarc_cli.settings import check_file


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file. Raises: UsageError when it is missing or malformed."""
    check_file(path, "--config")
    return toml_file.read(path, fix='write options as in TOML: model = "var-d16", save-json = true')


def read_run(path: Path) -> dict[str, Any]:
    """The options that a run.json records. Raises: UsageError when it is missing or records none."""
    check_file(path, "--config")
    try:
        protocol = from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read '{path}'", f"it is not valid JSON: {error}", "name a run.json") from None
    options = protocol.get("options") if isinstance(protocol, dict) else None
    if not isinstance(options, dict):
        why = "it is not the run.json of a run, or of one that an earlier version or Python code made"
        raise UsageError(f"'{path}' records no options", why, "write the options into a TOML file: docs/config.md")
    return options
