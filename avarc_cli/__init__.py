"""avarc: autoregressive image generators as image classifiers.

    from avarc_cli import load_classifier

The public names are those of `__all__` (docs/python-api.md). Importing this package is cheap: torch is imported when a
name that needs it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from avarc_cli.errors import AvarcError

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier, load_classifier
    from avarc_cli.data.datasets import open_images
    from avarc_cli.data.views import Views
    from avarc_cli.loading import ModelSpec, load_model
    from avarc_cli.options import Options
    from avarc_cli.prediction import Prediction
    from avarc_cli.sampling import Sampling, sample
    from avarc_cli.tokens.cache import read as open_cache
    from avarc_cli.tuning import tune

__version__ = "0.1.0"
__all__ = [
    "AvarcError",
    "Classifier",
    "ModelSpec",
    "Options",
    "Prediction",
    "Sampling",
    "Views",
    "__version__",
    "load_classifier",
    "load_model",
    "open_cache",
    "open_images",
    "sample",
    "tune",
]

# public name -> where it is defined
_LAZY = {
    "Classifier": "avarc_cli.classifier:Classifier",
    "ModelSpec": "avarc_cli.loading:ModelSpec",
    "Options": "avarc_cli.options:Options",
    "Prediction": "avarc_cli.prediction:Prediction",
    "Sampling": "avarc_cli.sampling:Sampling",
    "Views": "avarc_cli.data.views:Views",
    "load_classifier": "avarc_cli.classifier:load_classifier",
    "load_model": "avarc_cli.loading:load_model",
    "open_cache": "avarc_cli.tokens.cache:read",
    "open_images": "avarc_cli.data.datasets:open_images",
    "sample": "avarc_cli.sampling:sample",
    "tune": "avarc_cli.tuning:tune",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'avarc_cli' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(import_module(module), attribute)
