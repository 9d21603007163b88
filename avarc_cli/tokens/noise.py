"""The noise of smoothing samples, and of draws of continuous tokens."""

from __future__ import annotations

import math

import numpy as np

from avarc_cli.errors import UsageError


def check_sigma(sigma: float) -> None:
    """Raises: UsageError unless this can be the standard deviation of the noise."""
    if not (math.isfinite(sigma) and sigma >= 0):
        raise UsageError(f"sigma is {sigma}, must be a number of at least 0")


def sample_noise(seed: int, index: int, sample: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise of that shape, float32: a function of the arguments alone.

    Each (seed, index, sample) is a stream of its own of the counter-based generator Philox: the seed is its key, index
    and sample are the upper words of its counter. The lower words (2**128 blocks) count the numbers of the stream.

    Args:
        seed: of the run, in [0, 2**64).
        index: of the image in its full set.
        sample: from 1; sample 0 is the image itself, without noise.
    """
    key = np.array([seed, 0], dtype=np.uint64)
    counter = np.array([0, 0, index, sample], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
    return generator.standard_normal(shape, dtype=np.float32)
