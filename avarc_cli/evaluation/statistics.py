"""Statistics of two classifiers on the same images: a paired bootstrap interval and McNemar's test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
MOST_EXACT = 1000
"""Images that only one classifier gets right, up to which McNemar's test is exact."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How often each of two classifiers is right about the same images."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @staticmethod
    def of(first: np.ndarray, second: np.ndarray) -> Pairs:
        """Count them. first, second: whether each image is classified correctly, (N,) bool."""
        return Pairs(
            both=int((first & second).sum()),
            only_first=int((first & ~second).sum()),
            only_second=int((~first & second).sum()),
            neither=int((~first & ~second).sum()),
        )

    @property
    def images(self) -> int:
        """Of all four kinds."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the second minus accuracy of the first."""
        return (self.only_second - self.only_first) / self.images


def bootstrap_difference(pairs: Pairs, *, seed: int) -> tuple[float, float]:
    """95 % interval of the difference in accuracy: percentiles over resamples of the images, with their pairs.

    The difference depends on how many images of each kind a resample has, and these counts are multinomial. So counts
    are drawn in place of images: the distribution is that of the bootstrap, and the cost does not depend on the number
    of images.

    Args:
        pairs: of at least one image. seed: of the resamples.
    """
    n = pairs.images
    same = pairs.both + pairs.neither
    shares = np.array([pairs.only_first, pairs.only_second, same]) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)
    low, high = np.percentile((counts[:, 1] - counts[:, 0]) / n, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's test that both classifiers are equally accurate."""

    p: float
    """Two-sided."""

    test: str
    """Which variant was used."""


def mcnemar(pairs: Pairs) -> McNemar:
    """Test on the images that only one classifier gets right (McNemar, Psychometrika 1947)."""
    fewer, n = min(pairs.only_first, pairs.only_second), pairs.only_first + pairs.only_second
    if n <= MOST_EXACT:
        tail = sum(math.comb(n, k) for k in range(fewer + 1))
        return McNemar(p=min(1.0, 2 * tail / 2**n), test="exact binomial")
    statistic = max(0, abs(pairs.only_first - pairs.only_second) - 1) ** 2 / n
    return McNemar(p=math.erfc(math.sqrt(statistic / 2)), test="chi-squared with continuity correction")
