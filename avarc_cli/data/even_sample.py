"""Drawing images evenly over their classes: always the same ones for a seed, on every platform."""

from __future__ import annotations

import numpy as np

from avarc_cli.errors import UsageError


def draw_evenly(labels_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of `count` images, or of all if there are fewer, drawn at random with as many of each class as possible.

    The numbers of two classes differ by 1 at most, except where a class has too few images: the others make up for it.
    Images without a label are drawn only if none has one.

    Args:
        labels_N: class of each image, negative where there is none.
        seed: in [0, 2**64). The draw is a function of the arguments alone.
    Returns: (count,) int64, increasing.
    Raises: UsageError for a count below 1.
    """
    if count < 1:
        raise UsageError(f"cannot draw {count} images", "the number must be at least 1")
    rows = np.flatnonzero(labels_N >= 0)
    if not len(rows):
        rows, labels_N = np.arange(len(labels_N)), np.zeros(len(labels_N), dtype=np.int64)
    _, class_of, sizes = np.unique(labels_N[rows], return_inverse=True, return_counts=True)
    quota = _quota(sizes, min(count, len(rows)), _random(seed, 1, len(sizes)))
    order = np.lexsort((_random(seed, 0, len(labels_N))[rows], class_of))
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(rows)) - starts[class_of[order]]
    drawn: np.ndarray = np.sort(rows[order[rank < quota[class_of[order]]]])
    return drawn


def _quota(sizes_K: np.ndarray, count: int, random_K: np.ndarray) -> np.ndarray:
    """How many images of each of K classes to draw; random_K decides which classes give one more."""
    quota_K, left = np.zeros_like(sizes_K), count
    while left:
        able = np.flatnonzero(quota_K < sizes_K)
        if left < len(able):
            quota_K[able[np.argsort(random_K[able], kind="stable")[:left]]] += 1
            break
        more = np.minimum(sizes_K[able] - quota_K[able], left // len(able))
        quota_K[able] += more
        left -= int(more.sum())
    return quota_K


def _random(seed: int, stream: int, count: int) -> np.ndarray:
    """Random uint64. Raw bits of a bit generator, which NumPy keeps as they are in all versions (NEP 19)."""
    bits: np.ndarray = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(count)
    return bits
