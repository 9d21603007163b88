"""avarc: autoregressive image generators as image classifiers.

    from avarc_cli import load_classifier

The public names are those of `__all__` (docs/python-api.md). Importing this package is cheap: torch is imported when a
name that needs it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from avarc_cli.errors import AvarcError
from avarc_cli.heap import without_collection

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier, SampledImages, load_classifier
    from avarc_cli.data.datasets import open_images
    from avarc_cli.data.views import Views
    from avarc_cli.explain.explained_image import ExplainedImage
    from avarc_cli.loading import ModelSpec, load_model
    from avarc_cli.options import Options
    from avarc_cli.prediction import LogLikelihoods, Prediction, Predictions
    from avarc_cli.results.run import RunResult
    from avarc_cli.sampling import Sampling, sample
    from avarc_cli.tokens.cache import read as open_cache
    from avarc_cli.tuning import tune

__version__ = "0.2.0"
__all__ = [
    "AvarcError",
    "Classifier",
    "ExplainedImage",
    "LogLikelihoods",
    "ModelSpec",
    "Options",
    "Prediction",
    "Predictions",
    "RunResult",
    "SampledImages",
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
    "ExplainedImage": "avarc_cli.explain.explained_image:ExplainedImage",
    "LogLikelihoods": "avarc_cli.prediction:LogLikelihoods",
    "ModelSpec": "avarc_cli.loading:ModelSpec",
    "Options": "avarc_cli.options:Options",
    "Prediction": "avarc_cli.prediction:Prediction",
    "Predictions": "avarc_cli.prediction:Predictions",
    "RunResult": "avarc_cli.results.run:RunResult",
    "SampledImages": "avarc_cli.classifier:SampledImages",
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
    with without_collection():
        return getattr(import_module(module), attribute)
