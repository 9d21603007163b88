"""What a folder, a tar or a table of images is, and what is missing in it or broken."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avarc_cli.data.datasets import ImageSet, open_images, same_classes
from avarc_cli.data.folders import IMAGE_SUFFIXES
from avarc_cli.data.known import SYNSET, Dataset, datasets
from avarc_cli.data.labels import human_name
from avarc_cli.data.preprocess import read_rgb
from avarc_cli.errors import UnreadableImage, UsageError

EXAMPLES = 5
FEW = 100  # images that are decoded without being asked: it takes no time
THREADS = 4  # Pillow lets go of the interpreter while it decodes


@dataclass(frozen=True)
class Problem:
    """Something missing or broken. unreadable: it is images that cannot be read, which a run would leave out."""

    what: str
    count: int
    examples: tuple[str, ...]
    unreadable: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found.

    dataset: name of the known one, or ""; per_class: fewest and most images of a class; decoded: images that were
    decoded; expected_images, expected_classes: as published, None where that is unknown.
    """

    source: str
    dataset: str
    layout: str
    images: int
    labelled: int
    classes: int
    per_class: tuple[int, int] | None
    expected_images: int | None
    expected_classes: int | None
    decoded: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def check(
    inputs: Sequence[Path],
    dataset: str | None = None,
    *,
    decode: int | None = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Look at images without encoding them.

    Args:
        dataset: as open_images. decode: images to decode, spread evenly over the set; None for all. Of at most `FEW`
            images all are.
        progress: called with images decoded and to decode.
    Raises: UsageError as open_images.
    """
    images = open_images(inputs, dataset)
    known = datasets().get(images.dataset)
    counts = np.bincount(images.labels[images.labels >= 0], minlength=len(images.class_names))
    broken = dict(images.pictures.broken())
    rows = _spread(len(images), None if len(images) <= FEW else decode)
    broken |= _decode(images, [row for row in rows if row not in broken], progress)
    listed = [f"{images.names[row]}: {reason}" for row, reason in sorted(broken.items())]
    problems = [_problem("images that cannot be read", listed, unreadable=True)]
    problems += _of_labels(images, counts)
    problems += _of_dataset(images, known) if known else _of_synsets(images.class_names)
    if inputs[0].is_dir():
        problems += _of_folders(inputs, images)
    return Report(
        source=images.source,
        dataset=images.dataset,
        layout=images.layout,
        images=len(images),
        labelled=int((images.labels >= 0).sum()),
        classes=len(images.class_names),
        per_class=(int(counts.min()), int(counts.max())) if len(counts) else None,
        expected_images=known.images if known else None,
        expected_classes=known.classes if known else None,
        decoded=len(rows),
        problems=tuple(problem for problem in problems if problem.count),
        notes=images.notes,
    )


def parse_decode(text: str) -> int | None:
    """How many images to decode: a number, or all (None). Raises UsageError."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"cannot read --decode '{text}'", "it is a number of images, or all")
    return int(text)


def _problem(what: str, examples: Iterable[str], *, unreadable: bool = False) -> Problem:
    every = list(examples)
    return Problem(what, len(every), tuple(every[:EXAMPLES]), unreadable)


def _spread(count: int, wanted: int | None) -> list[int]:
    number = count if wanted is None else min(wanted, count)
    rows: list[int] = np.linspace(0, count - 1, number).round().astype(int).tolist()
    return rows


def _decode(images: ImageSet, rows: Sequence[int], progress: Callable[[int, int], None]) -> dict[int, str]:
    """Rows that cannot be decoded, and why."""

    def reason(row: int) -> str:
        try:
            read_rgb(lambda: images.pictures.open(row), "")
        except UnreadableImage as error:
            return error.why
        return ""

    broken = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for done, (row, why) in enumerate(zip(rows, threads.map(reason, rows), strict=True), start=1):
            if why:
                broken[row] = why
            progress(done, len(rows))
    return broken


def _of_labels(images: ImageSet, counts: np.ndarray) -> list[Problem]:
    unlabelled = np.flatnonzero(images.labels < 0)
    some = len(images.class_names) > 0 or images.dataset != ""
    return [
        _problem("images without a label", [images.names[row] for row in unlabelled] if some else []),
        _problem("classes that differ only in spelling", same_classes(images.class_names)),
    ]


def _of_dataset(images: ImageSet, known: Dataset) -> list[Problem]:
    """What the published dataset has and this has not, or the other way round."""
    missing = sorted(set(known.ids).difference(images.class_names))
    unknown = [] if known.of_objects else sorted(set(images.class_names).difference(known.ids))
    problems = [
        _problem(f"classes of {known.title} without images", map(_called, missing)),
        _problem(f"classes that {known.title} does not have", map(_called, unknown)),
    ]
    difference = known.images - len(images)
    if difference:
        what = "images fewer than published" if difference > 0 else "images more than published"
        problems.append(Problem(what, abs(difference), (f"{len(images):,} of {known.images:,}",)))
    return problems


def _of_synsets(class_names: Sequence[str]) -> list[Problem]:
    """Synsets that ImageNet-1k does not have, where classes are synsets at all."""
    synsets = {name for name in class_names if SYNSET.fullmatch(name)}
    unknown = sorted(synsets.difference(datasets()["imagenet-val"].ids)) if 2 * len(synsets) >= len(class_names) else ()
    return [_problem("synsets that ImageNet-1k does not have", unknown)]


def _of_folders(inputs: Sequence[Path], images: ImageSet) -> list[Problem]:
    """Files between the images that are none by their suffix, and folders beside those of classes without images."""
    prefix = "" if len(inputs) > 1 else str(inputs[0])
    with_images = {os.path.join(prefix, os.path.dirname(name)) for name in images.names}
    if images.labels.max() < 0:  # tars, tables, or images side by side: what else is there is none of our business
        return []
    others: list[str] = []
    for folder in sorted(with_images):
        others += [os.path.join(folder, e) for e in _entries(folder, files=True) if not _is_image(e)]
    beside = {os.path.dirname(folder) for folder in with_images if folder not in map(str, inputs)}
    siblings = (os.path.join(folder, e) for folder in sorted(beside) for e in _entries(folder, files=False))
    holding = with_images | beside | {os.path.dirname(folder) for folder in beside}
    empty = [path for path in siblings if path not in holding]
    return [
        _problem("files between the images whose suffix is no image's", others),
        _problem("class folders without images", empty),
    ]


def _entries(folder: str, *, files: bool) -> list[str]:
    if not os.path.isdir(folder):  # what lies in a tar
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and (e.is_file() if files else e.is_dir()))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _called(class_name: str) -> str:
    human = human_name(class_name)
    return class_name if human == class_name else f"{class_name} ({human})"
