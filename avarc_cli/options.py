"""What a classifier scores, and how: the options of the Python API and of `avarc classify`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from avarc_cli.results.tuned import TunedPlan

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to score, and how. `Classifier` checks the values."""

    plan: str | TunedPlan = "exhaustive"
    """exhaustive, paper, or stages (`scoring.plan`); FILE.json that `tune` wrote, or the plan that it returned; auto,
    the model's own tuned plan."""

    classes: str | Sequence[int] | None = None
    """Candidates, as in `data.labels.resolve_classes`, or their ids. None for the classes of `dataset`."""

    dataset: str = ""
    """The known dataset that the images are of (`data.known`, `ImageSet.dataset`). Empty for any other."""

    priors: str | Path | npt.NDArray[np.float64] | None = None
    """File of `class<TAB>weight` lines, or the log of each candidate's prior probability. None gives all candidates the
    same weight."""

    score: str = "log-likelihood"
    """log-likelihood, which is log p(x|y), or pmi, which is log p(x|y) - log p(x)."""

    orders: str | None = None
    """Of a model that scores tokens in any order: raster, a number of random orders, or FILE.npy of permutations
    (K, L). None for the model's default."""

    order_seed: int = 0
    """Of random orders."""

    steps: int | None = None
    """Passes that an order is cut into, of a model of hidden tokens. None for the model's default."""

    bound: int | None = None
    """Draws of the order-agnostic bound of a model of hidden tokens, in place of orders (`scoring.estimator`)."""

    unsmooth: float = 0.0
    """Label smoothing that a model of hidden tokens was trained with, to be undone, in [0, 1)."""

    combine: str = "mean"
    """How the scores of several orders become one: mean, posterior or log-mean-exp (`scoring.combining`)."""

    batch_size: str = AUTO
    """Pairs of image and class in one forward pass, a number, or auto: as many as suit the device."""

    deterministic: bool = False
    """Keep batch shapes fixed and allow deterministic operations only, so that reruns agree bit for bit. The library
    that multiplies float32 matrices on a CPU is not chosen by a measurement (`load_classifier`)."""

    offsets: bool = True
    """Add the offsets that a class bank stores to the scores of its classes."""

    memory: str | None = None
    """What the run may take, weights included, as 8GiB or 500MiB. None for no limit."""


def parse_batch_size(text: str) -> int | None:
    """A number of pairs; None for auto. Raises: UsageError for anything else."""
    if text == AUTO:
        return None
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise UsageError(f"batch size '{text[:20]}'", "it is a number of pairs from 1 to 999999999, or auto")
    return int(text)


def parse_bytes(text: str) -> int:
    """Bytes from "8GiB", "500MiB" or "8GB". Raises UsageError for anything else."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([GM])(i?)B", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"cannot read '{text[:20]}' as an amount of memory", fix="write it as 8GiB or 500MiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** (3 if match[2] == "G" else 2))
