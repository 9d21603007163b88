"""Which image is trained on when: a function of seed and place alone, for any number of processes and threads.

Places count the images of a training: image r of the batch of step s has place s * batch_size + r. N images make an
epoch, and are shuffled in each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

VIEWS, STAND_INS = 2, 3  # the last words of the seeds of other streams than the order; 1 is that of `RandomCut`


def rows_at(places: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The rows of the images at these places, of `count` images, int64."""
    return _look_up(places, count, lambda epoch: _shuffled(seed, epoch, count))


def views_at(places: np.ndarray, count: int, views: int, seed: int) -> np.ndarray:
    """Which of its views each image shows there, int64: another draw for each image in each epoch."""
    return _look_up(places, count, lambda epoch: _drawn(seed, epoch, count, views))


def stand_ins(rows: np.ndarray, place: int, seed: int) -> np.ndarray:
    """These rows in the order in which they may stand in for an image at this place that cannot be read."""
    return np.random.default_rng([seed, place, STAND_INS]).permutation(rows)


def _look_up(places: np.ndarray, count: int, of_epoch: Callable[[int], np.ndarray]) -> np.ndarray:
    epochs, offsets = np.divmod(places, count)
    found = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        found[here] = of_epoch(epoch)[offsets[here]]
    return found


@lru_cache(maxsize=4)  # each may have a million rows
def _shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


@lru_cache(maxsize=4)
def _drawn(seed: int, epoch: int, count: int, views: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, VIEWS]).integers(views, size=count)
