"""The user's own folders.

Settings and caches are in AVARC_HOME if it is set. Otherwise settings are in $XDG_CONFIG_HOME/avarc and caches in
$XDG_CACHE_HOME/avarc (XDG Base Directory Specification). Frozen networks are in the folder of torch.hub.
"""

from __future__ import annotations

import os
from pathlib import Path

NO_HOME = Path(os.devnull) / "no-home-folder"
"""In place of the home folder of a user who has none: nothing is found there, and nothing can be written."""


def config_folder() -> Path:
    """Where `models.json` is: AVARC_HOME, or ~/.config/avarc."""
    return _folder("XDG_CONFIG_HOME", ".config")


def weights_folder() -> Path:
    """Where the index of weights and the converted copies are: AVARC_HOME/weights, or ~/.cache/avarc/weights."""
    return _folder("XDG_CACHE_HOME", ".cache") / "weights"


def captions_folder() -> Path:
    """Where features of captions are kept: AVARC_HOME/captions, or ~/.cache/avarc/captions."""
    return _folder("XDG_CACHE_HOME", ".cache") / "captions"


def noise_folder() -> Path:
    """Where measured rounding noise is kept: AVARC_HOME/noise, or ~/.cache/avarc/noise."""
    return _folder("XDG_CACHE_HOME", ".cache") / "noise"


def products_folder() -> Path:
    """Where comparisons of libraries for matrix products are kept: AVARC_HOME/products, or ~/.cache/avarc/products."""
    return _folder("XDG_CACHE_HOME", ".cache") / "products"


def torch_folder() -> Path:
    """Where torch.hub keeps the files that it downloads: TORCH_HOME/hub/checkpoints, or below ~/.cache/torch."""
    home = os.environ.get("TORCH_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/torch"
    return _expand(home) / "hub" / "checkpoints"


def _folder(variable: str, default: str) -> Path:
    if home := os.environ.get("AVARC_HOME"):
        return _expand(home)
    base = os.environ.get(variable)
    return (_expand(base) if base else _expand("~") / default) / "avarc"


def _expand(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # HOME is not set and the user is not in the password file, or ~NAME is no user
        return NO_HOME
