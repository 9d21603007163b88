"""Finished runs over the same images, compared with the first of them.

Shapes: M images that all runs have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avarc_cli.data.labels import UNKNOWN
from avarc_cli.errors import UsageError
from avarc_cli.evaluation.common_images import NOT_COUNTED, CommonImages, RunImages, common_images
from avarc_cli.evaluation.statistics import McNemar, Pairs, bootstrap_difference, mcnemar
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.metrics import wilson
from avarc_cli.results.read_run import SavedRun, open_run
from avarc_cli.results.validate import check_metrics
from avarc_cli.words import counted


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """A run on the common images."""

    run: Path
    model: str
    plan: str
    candidates: int
    accuracy: float | None
    """Over the images that count in every run; None without labels."""

    accuracy_95: tuple[float, float] | None
    tokens_per_image: float
    """Tokens scored, mean over the common images."""

    seconds_per_image: float | None
    """Mean over the whole run, on the device it ran on."""

    device: str


@dataclass(frozen=True, kw_only=True)
class AgainstFirst:
    """A later run against the first one."""

    run: Path
    agreement: float
    """Share of the common images whose predicted class is the same."""

    different: int
    """Number of the others."""

    near_ties: int
    """Of these, those that are a near-tie in one of the two: within rounding errors."""

    pairs: Pairs | None
    """How often each is right; None without labels, like all that follows."""

    difference: float | None
    """In accuracy: this run's minus the first one's."""

    difference_95: tuple[float, float] | None
    mcnemar: McNemar | None


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """Accuracy on the images of one class, run by run."""

    name: str
    images: int
    accuracy: tuple[float, ...]

    @property
    def change(self) -> float:
        """The largest difference from the first run."""
        return max((a - self.accuracy[0] for a in self.accuracy[1:]), key=abs)


@dataclass(frozen=True, kw_only=True)
class ImageDifference:
    """An image whose predicted class is not the same in all runs."""

    path: str
    label: str | None
    """Name of its class."""

    predictions: tuple[str, ...]
    """Names of the predicted classes, run by run."""

    posteriors: tuple[float, ...]
    """Of the predictions."""

    right: tuple[bool | None, ...]
    """None where the label is unknown or no candidate."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found."""

    images: int
    """That all runs have, M."""

    counted: int
    """Of these, images whose label is a candidate in every run; accuracies are over these."""

    runs: list[OneRun]
    against_first: list[AgainstFirst]
    per_class: list[ClassAccuracy]
    """The largest changes first."""

    differing: int
    """Images whose predicted class is not the same in all runs."""

    differences: list[ImageDifference]
    """The first of these: where some run is right and another wrong, then the most confident predictions."""

    notes: list[str]
    """What makes the runs less comparable, and which images are left out."""

    seed: int
    """Of the bootstrap."""


def open_runs(paths: Sequence[Path]) -> list[SavedRun]:
    """The runs to compare. Raises: UsageError for fewer than two, and one that is named twice; as `open_run`."""
    if len(paths) < 2:
        raise UsageError("there is one run", "it is compared with others", "name two or more run folders")
    resolved = [path.resolve() for path in paths]
    if twice := [path for path, place in zip(paths, resolved, strict=True) if resolved.count(place) > 1]:
        raise UsageError(f"'{twice[0]}' is named twice", "a run does not differ from itself", "name each run once")
    return [open_run(path) for path in paths]


def compare(saved: Sequence[SavedRun], *, images: int, seed: int = 0) -> Comparison:
    """Compare runs on the images that all of them have.

    Args:
        images: how many of the images on which they differ to list.
        seed: of the bootstrap.
    Raises: as `common_images`.
    """
    common = common_images(saved)
    runs = common.runs
    counts = np.all([run.right != NOT_COUNTED for run in runs], axis=0)  # (M,)
    differs = np.any([run.prediction != runs[0].prediction for run in runs[1:]], axis=0)
    order = _most_telling(runs, np.flatnonzero(differs))
    return Comparison(
        images=len(counts),
        counted=int(counts.sum()),
        runs=[_one_run(run, counts) for run in runs],
        against_first=[_against(runs[0], run, counts, seed) for run in runs[1:]],
        per_class=_per_class(common, counts),
        differing=len(order),
        differences=[_difference(common, row) for row in order[:images].tolist()],
        notes=[*common.left_out, *_notes(runs, counts)],
        seed=seed,
    )


def _one_run(images: RunImages, counts: np.ndarray) -> OneRun:
    run, right = images.run, images.right[counts] == 1
    metrics = RunFolder(run.path).read_metrics()
    check_metrics(metrics, f"{run.path / 'metrics.json'}")
    return OneRun(
        run=run.path,
        model=run.protocol["model"]["name"],
        plan=run.protocol["plan"],
        candidates=len(run.candidates),
        accuracy=float(right.mean()) if len(right) else None,
        accuracy_95=wilson(int(right.sum()), len(right)) if len(right) else None,
        tokens_per_image=float(images.tokens_scored.mean()),
        seconds_per_image=metrics.get("seconds_per_image"),
        device=run.protocol.get("device_name", ""),
    )


def _against(first: RunImages, other: RunImages, counts: np.ndarray, seed: int) -> AgainstFirst:
    different = first.prediction != other.prediction
    pairs = Pairs.of(first.right[counts] == 1, other.right[counts] == 1) if counts.any() else None
    return AgainstFirst(
        run=other.run.path,
        agreement=float(1 - different.mean()),
        different=int(different.sum()),
        near_ties=int((different & (first.near_tie | other.near_tie)).sum()),
        pairs=pairs,
        difference=pairs.difference if pairs else None,
        difference_95=bootstrap_difference(pairs, seed=seed) if pairs else None,
        mcnemar=mcnemar(pairs) if pairs else None,
    )


def _per_class(common: CommonImages, counts: np.ndarray) -> list[ClassAccuracy]:
    label = common.runs[0].label[counts]
    right = [run.right[counts] == 1 for run in common.runs]
    number = np.bincount(label, minlength=len(common.classes.names))
    hits = [np.bincount(label, weights=each, minlength=len(number)) for each in right]
    classes = [
        ClassAccuracy(
            name=common.classes.names[i],
            images=int(number[i]),
            accuracy=tuple(float(each[i] / number[i]) for each in hits),
        )
        for i in np.flatnonzero(number).tolist()
    ]
    return sorted(classes, key=lambda c: (-abs(c.change), -c.images, c.name))


def _most_telling(runs: Sequence[RunImages], rows: np.ndarray) -> np.ndarray:
    """These rows with those first that some run gets right and another wrong, then by the least sure prediction."""
    right = np.stack([run.right[rows] for run in runs])
    decides = (right == 1).any(axis=0) & (right == 0).any(axis=0)
    least_sure = np.stack([run.posterior[rows] for run in runs]).min(axis=0)
    ordered: np.ndarray = rows[np.lexsort((rows, -least_sure, ~decides))]
    return ordered


def _difference(common: CommonImages, row: int) -> ImageDifference:
    runs, label = common.runs, int(common.runs[0].label[row])
    right = [int(run.right[row]) for run in runs]
    return ImageDifference(
        path=runs[0].paths[row],
        label=None if label == UNKNOWN else common.classes.names[label],
        predictions=tuple(common.classes.names[run.prediction[row]] for run in runs),
        posteriors=tuple(float(run.posterior[row]) for run in runs),
        right=tuple(None if value == NOT_COUNTED else value == 1 for value in right),
    )


def _notes(runs: Sequence[RunImages], counts: np.ndarray) -> list[str]:
    notes = []
    if not counts.any():
        notes.append("no image has a label among the candidates of every run: accuracies are not known")
    elif not counts.all():
        number = int((~counts).sum())
        what = "has no label" if number == 1 else "have no label"
        notes.append(f"{counted(number, 'image')} {what} among the candidates of every run: accuracies are without")
    if len({run.candidates for run in runs}) > 1:
        sizes = ", ".join(str(len(run.candidates)) for run in runs)
        notes.append(f"the runs choose among other classes ({sizes}): fewer candidates are easier")
    return notes + _other_devices(runs)


def _other_devices(runs: Sequence[RunImages]) -> list[str]:
    devices: list[str] = list(dict.fromkeys(run.run.protocol.get("device_name", "?") for run in runs))
    if len(devices) == 1:
        return []
    return [f"the runs were made on {' and '.join(devices)}: their times are not comparable"]
