"""The user's own folders.

AVARC_HOME, if set, holds everything; otherwise settings lie in $XDG_CONFIG_HOME/avarc and what can be made again in
$XDG_CACHE_HOME/avarc, as other programs do it.
"""

from __future__ import annotations

import os
from pathlib import Path


def config_folder() -> Path:
    """Where `models.json` lies: AVARC_HOME, or ~/.config/avarc."""
    return _folder("XDG_CONFIG_HOME", ".config")


def weights_folder() -> Path:
    """Where copies of weights that load fast lie: AVARC_HOME/weights, or ~/.cache/avarc/weights."""
    return _folder("XDG_CACHE_HOME", ".cache") / "weights"


def _folder(variable: str, default: str) -> Path:
    if home := os.environ.get("AVARC_HOME"):
        return Path(home).expanduser()
    base = os.environ.get(variable)
    return (Path(base).expanduser() if base else Path.home() / default) / "avarc"
