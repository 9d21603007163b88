"""What a classifier scores, and how: the options of the Python API and of `avarc classify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to score, and how. `Classifier` checks the values."""

    plan: str = "exhaustive"
    """exhaustive, paper, or stages (`scoring.plan`); FILE.json that `tune` wrote; auto, the model's own tuned plan."""

    classes: str | None = None
    """Candidates, as in `data.labels.resolve_classes`. None for the classes of `dataset`."""

    dataset: str = ""
    """The known dataset that the images are of (`data.known`, `ImageSet.dataset`). Empty for any other."""

    priors: str | Path | None = None
    """File of `class<TAB>weight` lines. None gives all candidates the same weight."""

    score: str = "log-likelihood"
    """log-likelihood, which is log p(x|y), or pmi, which is log p(x|y) - log p(x)."""

    batch_size: str = AUTO
    """Pairs of image and class in one forward pass, a number, or auto: as many as suit the device."""

    deterministic: bool = False
    """Keep batch shapes fixed and allow deterministic operations only, so that reruns agree bit for bit."""

    offsets: bool = True
    """Add the offsets that a class bank stores to the scores of its classes."""

    memory: str | None = None
    """What the run may take, weights included, as 8GiB or 500MiB. None for no limit."""
