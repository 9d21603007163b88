"""avarc: autoregressive image generators as image classifiers.

    from avarc_cli import load_classifier

Importing this package is cheap: torch is imported when a name that needs it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from avarc_cli.errors import AvarcError

if TYPE_CHECKING:
    from avarc_cli.classifier import load_classifier

__version__ = "0.1.0"
__all__ = ["AvarcError", "__version__", "load_classifier"]

# public name -> the module that defines it
_LAZY = {"load_classifier": "avarc_cli.classifier"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'avarc_cli' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
