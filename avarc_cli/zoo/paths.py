"""The user's folders for settings and caches, and writing files in them atomically.

Both are in AVARC_HOME if it is set. Otherwise settings are in $XDG_CONFIG_HOME/avarc and caches in
$XDG_CACHE_HOME/avarc (XDG Base Directory Specification).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def config_folder() -> Path:
    """Where `models.json` is: AVARC_HOME, or ~/.config/avarc."""
    return _folder("XDG_CONFIG_HOME", ".config")


def weights_folder() -> Path:
    """Where the index of weights and the converted copies are: AVARC_HOME/weights, or ~/.cache/avarc/weights."""
    return _folder("XDG_CACHE_HOME", ".cache") / "weights"


def _folder(variable: str, default: str) -> Path:
    if home := os.environ.get("AVARC_HOME"):
        return Path(home).expanduser()
    base = os.environ.get(variable)
    return (Path(base).expanduser() if base else Path.home() / default) / "avarc"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there takes its place at the end of the block.

    So the file is, whenever the process dies, either complete or as it was before. Folders are made.
    Raises: OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write the same thing at once
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
