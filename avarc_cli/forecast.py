"""What a long job would take, found out without doing it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from avarc_cli.cache_classifier import CacheClassifier
from avarc_cli.data.datasets import ImageSet
from avarc_cli.scoring.batching import estimate
from avarc_cli.scoring.drawn import count_drawn
from avarc_cli.tokens.cache import read
from avarc_cli.tokens.header import CacheHeader

TRIED = 8
"""Images that are encoded to measure the speed."""


@dataclass(frozen=True)
class EncodingForecast:
    """What encoding takes."""

    header: CacheHeader
    """Of a cache of a few of the images; except for the number of images, that of all."""
    images: int
    """In all."""
    seconds: float
    """For all of them, from the time that `tried` of them took."""
    tried: int
    """Images that were encoded."""

    @property
    def token_bytes(self) -> int:
        """Size of the tokens in the cache."""
        return self.images * self.header.form.nbytes


def forecast_encoding(images: ImageSet, encode: Callable[[ImageSet, Path], object]) -> EncodingForecast:
    """Encode a few of the images into temporary files, and measure the time.

    Args:
        encode: encodes images into a cache.
    Raises: as `encode`.
    """
    few = images.sample(TRIED, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        encode(few, Path(folder) / "warm.h5")  # the first images take longer
        started = time.perf_counter()
        encode(few, Path(folder) / "timed.h5")
        seconds = time.perf_counter() - started
        header = read(Path(folder) / "timed.h5").header
    return EncodingForecast(header, len(images), seconds * len(images) / len(few), len(few))


@dataclass(frozen=True, kw_only=True)
class ScoringForecast:
    """What scoring takes."""

    plan: str
    images: int
    classes: int
    """Candidates."""
    pairs: int
    """Pairs of image and class."""
    tokens: int
    """Tokens that are scored; an estimate if margins decide which candidates survive."""
    seconds: float
    """Estimate, from the model's arithmetic and this machine's rate of matrix products."""
    memory: int
    """Estimate of what scoring takes beside the weights, in bytes."""
    weights: int
    """Bytes of the weights; an upper estimate where a plan or a cascade has several precisions."""
    drawn: int = 0
    """Images that are drawn before; what they take is not part of the numbers above."""


def forecast_scoring(
    classifier: CacheClassifier, header: CacheHeader, images: int, *, keep_tokens: bool = False
) -> ScoringForecast:
    """What scoring this many images of a cache takes. Raises: as `CacheClassifier.request`."""
    request, likelihood = classifier.request(header, keep_tokens=keep_tokens), classifier.model.likelihood
    cost = estimate(likelihood, request, images, torch.device(classifier.model.device), classifier.model.precision)
    return ScoringForecast(
        plan=str(request.plan),
        images=images,
        classes=len(request.candidates),
        pairs=cost.pairs,
        tokens=cost.tokens,
        seconds=cost.seconds,
        memory=cost.memory,
        weights=likelihood.resident_bytes + classifier.other_weights(request.plan),
    )


def forecast_tuning(classifier: CacheClassifier, header: CacheHeader, images: int, *, samples: int) -> ScoringForecast:
    """What tuning a plan on this many images of a cache takes.

    Args:
        samples: as in `tune`.
    Raises: as `CacheClassifier` and `CacheClassifier.request`.
    """
    forecast = forecast_scoring(classifier.exhaustive(samples), header, images)
    return replace(forecast, drawn=count_drawn(classifier.model.likelihood, forecast.classes))
