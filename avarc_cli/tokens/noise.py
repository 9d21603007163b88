"""The noise that makes an image's smoothing neighbours."""

from __future__ import annotations

import numpy as np


def neighbour_noise(seed: int, index: int, sample: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise of that shape, float32, the same wherever and in whatever order it is asked for.

    Every (seed, index, sample) is a stream of its own of a counter-based generator: the seed is its key, index and
    sample are the upper words of its counter, and the lower ones (2**128 blocks) are left to the numbers themselves.

    Args:
        seed: of the run, in [0, 2**64).
        index: of the image in its full set.
        sample: of the neighbour; 0 is the image itself and has no noise, by convention of the cache.
    """
    key = np.array([seed, 0], dtype=np.uint64)
    counter = np.array([0, 0, index, sample], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
    return generator.standard_normal(shape, dtype=np.float32)
