"""How far low precisions may be off: the rounding noise of differences of two candidates' log-likelihoods, measured.

Both models, the cheap one and the exact one, score a few images under a few classes. For every number of segments, the
noise is the standard deviation, over images and pairs of classes, of the error of

    log p(x | one class) - log p(x | other class),

of the same image x. What both have in common cancels, as it does where candidates are compared.

`RoundingNoise.slacks` turns it into a number that no error that matters exceeds, but for a stated probability
(docs/cascade.md):

    noise * t,    P(T > t) = probability / comparisons,    T of Student's distribution,

for the errors that `comparisons` counts, with as many degrees of freedom as the measurement has, `MOST_FREEDOM` at
most: errors of few tokens, and of different images, have longer tails than a normal distribution. For the same reason
n tokens count with at least the noise of all L tokens times sqrt(n / L). Errors of samples and orders may be alike, so
a mean over them has the noise of one.

Shapes: G images, N candidates, K segments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.combining import MEAN
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import LEFT_BY_FIRST_CUT, Plan, Stage
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import FloatN, IntN, TokensN, rounding_noise, score_function

CLASSES = 16  # that are scored at most
LEAST_IMAGES, MOST_IMAGES = 4, 32
FREEDOM = 60  # degrees of freedom that the number of images is chosen for
MOST_FREEDOM = 30
PROBABILITY = 1e-6
"""That the prediction of an image differs from the one in the exact precision."""


@dataclass(frozen=True)
class RoundingNoise:
    """Standard deviations, in nats, of the error of a difference of two candidates' log-likelihoods of one image."""

    segments: tuple[float, ...]
    """Of the first 1 .. K segments."""
    estimates: Mapping[int, float]
    """Of estimates of the whole image from this many segments (`LikelihoodModel.block_parallel`)."""
    images: int
    """That it was measured on."""
    classes: int
    """That each of them was scored under."""

    def __post_init__(self) -> None:
        """Raises: ValueError for values that cannot be such a measurement."""
        deviations = (*self.segments, *self.estimates.values())
        if not self.segments or not all(math.isfinite(sd) and sd >= 0 for sd in deviations):
            raise ValueError("standard deviations are finite numbers from 0")
        if self.images < 1 or self.classes < 2:
            raise ValueError("it was measured on nothing")

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the measurement."""
        return self.images * (self.classes - 1)

    def of(self, stage: Stage, ends: tuple[int, ...]) -> float:
        """The noise of a stage's scores; 0 of a first cut, which is the same in all precisions."""
        if not stage.segments:
            return 0.0
        if stage.estimated:
            return max(self.estimates[stage.segments], self.segments[-1])
        tokens = ends[stage.segments - 1]
        return max(self.segments[stage.segments - 1], self.segments[-1] * math.sqrt(tokens / ends[-1]))

    def slacks(self, plan: Plan, candidates: int, ends: tuple[int, ...]) -> tuple[float, ...]:
        """Nats, of each stage, that no difference that matters is wrong by, but for `PROBABILITY` an image.

        The union bound is over `comparisons`. The exact precision's own rounding noise is exceeded in any case.
        """
        t = quantile(PROBABILITY / comparisons(plan, candidates), min(self.freedom, MOST_FREEDOM))
        noises = [self.of(stage, ends) for stage in plan.stages]
        least = [rounding_noise(ends[max(stage.segments, 1) - 1], "fp32") for stage in plan.stages]
        return tuple(
            max(t * noise, smallest) if stage.segments else 0.0
            for stage, noise, smallest in zip(plan.stages, noises, least, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        estimates = {str(segments): sd for segments, sd in self.estimates.items()}
        return {
            "images": self.images,
            "classes": self.classes,
            "segments": list(self.segments),
            "estimates": estimates,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RoundingNoise:
        """What `to_dict` wrote. Raises: KeyError, TypeError or ValueError."""
        segments, estimates = values["segments"], values["estimates"]
        if not isinstance(segments, list) or not isinstance(estimates, dict):
            raise TypeError("segments is a list, estimates an object")
        return cls(
            tuple(float(sd) for sd in segments),
            {int(count): float(sd) for count, sd in estimates.items()},
            int(values["images"]),
            int(values["classes"]),
        )


def comparisons(plan: Plan, candidates: int) -> int:
    """How many errors of a difference could change what the stages of a plan keep, each in one direction; at least 1.

    Let a stage keep the K best of A candidates in the exact precision. A cascade that keeps others has dropped one of
    these K because of one that is not among them, or has taken one for sure that is not among them, ahead of one that
    is. Either way, the cheap precision puts one that is dropped ahead of one that is kept, by more than the slack:
    K (A - K) errors. Where a margin counts, any of the A may be too far ahead of any other: A (A - 1) errors.

    Args:
        candidates: that the first stage scores.
    """
    total, left = 0, candidates
    for stage in plan.stages:
        keep = min(left, stage.keep if stage.segments else max(stage.keep, LEFT_BY_FIRST_CUT))
        if stage.segments:  # a first cut is the same in all precisions
            total += keep * (left - keep) if math.isinf(stage.margin) else left * (left - 1)
        left = keep
    return max(1, total)


def images_needed(candidates: int, there: int) -> int:
    """Images to measure on, of those that there are."""
    wanted = -(-FREEDOM // max(1, min(candidates, CLASSES) - 1))
    return min(there, MOST_IMAGES, max(LEAST_IMAGES, wanted))


def freedom_of(candidates: int, there: int) -> int:
    """Degrees of freedom, as far as they count, of a measurement with these candidates on the images that are there."""
    return min(MOST_FREEDOM, images_needed(candidates, there) * (min(candidates, CLASSES) - 1))


def measure(
    cheap: LikelihoodModel,
    exact: LikelihoodModel,
    tokens_GSL: TokensN,
    request: ScoringRequest,
    order_GOL: IntN | None = None,
) -> RoundingNoise:
    """Measure the noise of a cheap precision against an exact one.

    Args:
        tokens_GSL: of the images, of which sample 0 is scored; so is order 0.
        request: whose candidates, of which up to `CLASSES` are scored, and whose plan tells what is estimated.
    Raises: AvarcError if a model returns log-probabilities that are not finite.
    """
    segments, total = len(exact.segment_ends), len(request.candidates)
    chosen = np.unique(np.linspace(0, total - 1, min(CLASSES, total)).round().astype(np.int64))
    estimated = tuple(sorted({s.segments for s in request.plan.stages if s.estimated and s.segments}))
    small = replace(
        request.of(chosen),
        plan=Plan((Stage(segments, 1),)),
        score=score_function("log-likelihood"),
        combine=MEAN,
        keep_segments=True,
        keep_estimates=estimated,
    )
    tokens_G1L = tokens_GSL[:, :1]
    order_G1L = None if order_GOL is None else order_GOL[:, :1]
    sums_XGNK, estimates_XGNE = [], []
    for model in (exact, cheap):
        scored = [_alone(model, tokens_G1L, small, order_G1L, g) for g in range(len(tokens_G1L))]
        sums_XGNK.append(np.stack([each[0] for each in scored]))
        estimates_XGNE.append(np.stack([each[1] for each in scored]))
    of_segments = _deviation(sums_XGNK[1].cumsum(-1) - sums_XGNK[0].cumsum(-1))
    of_estimates = _deviation(estimates_XGNE[1] - estimates_XGNE[0])
    return RoundingNoise(
        tuple(of_segments.tolist()),
        dict(zip(estimated, of_estimates.tolist(), strict=True)),
        len(tokens_G1L),
        len(chosen),
    )


def _alone(
    model: LikelihoodModel, tokens_G1L: TokensN, request: ScoringRequest, order_G1L: IntN | None, g: int
) -> tuple[FloatN, FloatN]:
    """Sums over segments (N, K) and estimates (N, E) of one image."""
    order_11L = None if order_G1L is None else order_G1L[[g]]
    (scores,) = score_group(model, tokens_G1L[[g]], request, order_11L)
    assert scores.segment_log_prob is not None
    sums_NK = scores.segment_log_prob[:, 0, 0]
    return sums_NK, np.empty((len(sums_NK), 0)) if scores.estimates is None else scores.estimates


def _deviation(error_GNX: FloatN) -> FloatN:
    """Standard deviation of differences of two candidates' errors, (X,), rounded up to three digits."""
    images, classes = error_GNX.shape[:2]
    centered = error_GNX - error_GNX.mean(1, keepdims=True)
    deviation_X = np.sqrt(2 * (centered**2).sum((0, 1)) / (images * max(1, classes - 1)))
    unit_X = 10.0 ** (np.floor(np.log10(np.where(deviation_X > 0, deviation_X, 1.0))) - 2)
    rounded: FloatN = np.ceil(deviation_X / unit_X) * unit_X
    return rounded


def quantile(probability: float, freedom: int) -> float:
    """The t, at least 1, that a variable of Student's distribution exceeds with this small probability."""
    low, high = 1.0, 2.0
    while tail(high, freedom) > probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, freedom) > probability else (low, middle)
    return high


def tail(t: float, freedom: int) -> float:
    """P(T > t) for Student's distribution, t at least 1.

    It is half of the regularized incomplete beta function I_x(freedom / 2, 1 / 2). The terms of its series are
    positive, so that small probabilities are exact (DLMF 8.17.7, 8.17.8).
    """
    a, x = freedom / 2, freedom / (freedom + t * t)
    log_front = a * math.log(x) + 0.5 * math.log1p(-x) + math.lgamma(a + 0.5) - math.lgamma(a + 1) - math.lgamma(0.5)
    total = term = 1.0
    n = 0
    while term > 1e-16 * total:
        term *= x * (a + 0.5 + n) / (a + 1 + n)
        total += term
        n += 1
    return 0.5 * math.exp(log_front) * total
