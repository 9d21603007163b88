"""Pictures of classes, drawn by a model.

    from avarc_cli.sampling import Sampling, sample, sample_many

Importing this package is cheap: torch is imported when one of these names is first used, so that `avarc sample` can
read presets and check where its pictures go before that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avarc_cli.sampling.many import sample_many
    from avarc_cli.sampling.pictures import Samples, Sampling, sample

__all__ = ["Samples", "Sampling", "sample", "sample_many"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'avarc_cli.sampling' has no attribute {name!r}")
    module = "many" if name == "sample_many" else "pictures"
    return getattr(import_module(f"avarc_cli.sampling.{module}"), name)
