"""Which classes a model chooses from, and how likely each is before the image is seen.

Shapes: N candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avarc_cli.data.known import datasets
from avarc_cli.data.label_mapping import default_candidates
from avarc_cli.data.labels import LabelSpace, match, resolve_classes
from avarc_cli.errors import UsageError

NAMES_SHOWN = 5  # in an error message


def candidates(
    space: LabelSpace, classes: str | Sequence[int] | None, dataset: str
) -> tuple[npt.NDArray[np.int64], str]:
    """Class ids of the candidates (N,), and the title of the dataset they follow from ("" for any other choice).

    Args:
        space: the model's classes.
        classes: as in `data.labels.resolve_classes`, or class ids; None for the classes of `dataset`.
        dataset: name of a known dataset (`data.known`); every class of the model is a candidate for any other.
    Raises: UsageError for classes that the model does not have.
    """
    if isinstance(classes, str):
        return np.array(resolve_classes(classes, space), dtype=np.int64), ""
    if classes is not None:
        return _of_ids(space, classes), ""
    chosen = default_candidates(dataset, space)
    if chosen is None:
        return np.arange(len(space)), ""
    return chosen, datasets()[dataset].title


def _of_ids(space: LabelSpace, ids: Sequence[int]) -> npt.NDArray[np.int64]:
    chosen = np.unique(np.array(ids, dtype=np.int64))
    if not len(chosen):
        raise UsageError("the list of classes is empty")
    if unknown := chosen[(chosen < 0) | (chosen >= len(space))].tolist():
        raise UsageError(f"there is no class {unknown[0]}", f"{space.name} has the ids 0 to {len(space) - 1}")
    return chosen


def log_prior(
    space: LabelSpace, candidates: npt.NDArray[np.int64], given: str | Path | npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """Log of the candidates' normalized weights (N,), nats; zeros without any.

    Args:
        space: the model's classes.
        given: text file of `class<TAB>weight` lines, which may hold classes of the model that are no candidates; or
            these logarithms themselves.
    Raises: UsageError for a file that cannot be read, an unknown class, or a candidate without a weight.
    """
    if given is None:
        return np.zeros(len(candidates))
    if isinstance(given, np.ndarray):
        if given.shape != candidates.shape:
            raise UsageError(f"there are {given.size} priors", f"there are {len(candidates)} candidates")
        return given.astype(np.float64)
    path = Path(given)
    weights = read_weights(path)
    index = match(list(weights), space)
    unknown = [name for name, i in zip(weights, index, strict=True) if i < 0]
    by_class: dict[int, float] = dict(zip(index.tolist(), weights.values(), strict=True))
    without = [space.ids[c] for c in candidates if c not in by_class]
    if unknown or without:
        names = ", ".join((unknown or without)[:NAMES_SHOWN])
        why = f"not classes of {space.name}: {names}" if unknown else f"candidates without a prior: {names}"
        raise UsageError(f"the priors in {path} do not fit", why, "give every candidate one line: class<TAB>weight")
    log_weight: npt.NDArray[np.float64] = np.log([by_class[int(c)] for c in candidates])
    log_weight -= np.logaddexp.reduce(log_weight)
    return log_weight


def read_weights(path: Path) -> dict[str, float]:
    """The weight of each class that a file of `class<TAB>weight` lines names. Raises: UsageError."""
    try:
        lines = [line.split("\t") for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        weights = {name: float(weight) for name, weight in lines}
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the priors in {path}", str(error), "write one class<TAB>weight a line") from None
    if not all(math.isfinite(w) and w > 0 for w in weights.values()):
        raise UsageError(f"a prior in {path} is not positive", "every class needs a weight above 0")
    return weights
