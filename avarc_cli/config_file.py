"""Options of commands in files: a TOML file that a user wrote, or the run.json of an earlier run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from avarc_cli.errors import UsageError
from avarc_cli.names import from_json
from avarc_cli.settings import check_file

MAX_BYTES = 1 << 20  # of a TOML file; far beyond any that somebody writes


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file. Raises: UsageError when it is missing or malformed."""
    check_file(path, "--config")
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"cannot read '{path}'", f"it is larger than {MAX_BYTES >> 20} MiB", "name a TOML file")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        fix = 'write options as in TOML: model = "var-d16", save-json = true'
        raise UsageError(f"cannot read '{path}'", f"it is not valid TOML: {error}", fix) from None


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
