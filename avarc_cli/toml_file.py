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


MAX_BYTES = 1 << 20  # far beyond any file that somebody writes


def read(path: Path, *, fix: str = "correct it") -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        fix: what to do where it is none, for the message.
    Raises: UsageError for a file that is missing, no TOML, or larger than a megabyte.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"cannot read '{path}'", f"it is larger than {MAX_BYTES >> 20} MiB", "name a TOML file")
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read '{path}'", error.strerror or str(error), "name a TOML file") from None
    except (ValueError, RecursionError) as error:  # malformed, or no UTF-8
        raise UsageError(f"'{path}' is not a TOML file", str(error) or "it is nested too deeply", fix) from None
