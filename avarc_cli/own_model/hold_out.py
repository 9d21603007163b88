"""Which images are kept from training, to find out how well the model does on new ones."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from avarc_cli.errors import UsageError

AGREEMENTS = (0.995, 0.99, 0.98)  # at 0.95, a plan cost 6 % of the accuracy on photos
"""Of a tuned plan with exhaustive scoring: the first that the images suffice for."""


def check(fraction: float) -> None:
    """Raises: UsageError unless this part of the images can be held out."""
    if not 0 <= fraction < 1:
        raise UsageError(f"cannot hold out {fraction:g} of the images", "it is a fraction in [0, 1)", "--hold-out 0.1")


def split(label_N: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to hold out, both sorted: of each class this fraction, chosen at random.

    At least one image of each class is trained on.
    """
    held: list[int] = []
    for label in np.unique(label_N).tolist():
        rows = np.flatnonzero(label_N == label)
        count = min(math.floor(fraction * len(rows) + 0.5), len(rows) - 1)
        order = np.random.default_rng([seed, label]).permutation(len(rows))
        held += rows[order[:count]].tolist()
    kept = np.setdiff1d(np.arange(len(label_N)), held)
    return kept, np.array(sorted(held), dtype=np.int64)


def agreement_for(images: int) -> float | None:
    """The agreement that a plan can be tuned for on this many images; None where they are too few for any."""
    return next((a for a in AGREEMENTS if images >= Fraction(str(a)) / (1 - Fraction(str(a)))), None)
