"""The user's own folders.

Both are in AVARC_HOME if it is set. Otherwise settings are in $XDG_CONFIG_HOME/avarc and caches in
$XDG_CACHE_HOME/avarc (XDG Base Directory Specification).
"""

from __future__ import annotations

import os
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
