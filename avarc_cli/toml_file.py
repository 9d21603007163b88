"""Reading TOML files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from avarc_cli.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises: UsageError for a file that is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read '{path}'", error.strerror or str(error), "name a TOML file") from None
    except (ValueError, RecursionError) as error:  # malformed, or no UTF-8
        raise UsageError(
            f"'{path}' is not a TOML file", str(error) or "it is nested too deeply", "correct it"
        ) from None
