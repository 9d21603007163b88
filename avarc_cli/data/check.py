"""What a folder, tar or table of images contains, and which problems it has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avarc_cli.data.datasets import ImageSet, open_images, spelling_variants
from avarc_cli.data.image_names import is_image
from avarc_cli.data.known import SYNSET, Dataset, datasets
from avarc_cli.data.label_files import is_label_file
from avarc_cli.data.labels import human_name
from avarc_cli.data.preprocess import read_rgb
from avarc_cli.errors import UnreadableImage, UsageError
from avarc_cli.progress import Progress, no_progress

EXAMPLES = 5  # of each problem
ALWAYS_DECODED = 100  # sets of at most this many images are decoded completely: it takes no time
THREADS = 4  # Pillow releases the interpreter lock while it decodes


@dataclass(frozen=True)
class Problem:
    """Something that is missing or invalid."""

    what: str  # plural noun phrase: "images without a label"
    count: int  # how many there are
    examples: tuple[str, ...]  # at most EXAMPLES of them
    unreadable: bool = False  # whether these are images that cannot be read, which a run leaves out


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What `avarc data check` found. The field names are the keys of its JSON output."""

    source: str  # the inputs, as the user wrote them
    dataset: str  # name of the known dataset, or ""
    layout: str  # how the images are stored, in words
    images: int  # found
    labelled: int  # images with a label
    classes: int  # classes with images
    per_class: tuple[int, int] | None  # smallest and largest number of images in a class; None without classes
    expected_images: int | None  # in the published dataset; None if it is not a known one
    expected_classes: int | None  # likewise
    decoded: int  # images that were decoded
    problems: tuple[Problem, ...]  # those that were found
    notes: tuple[str, ...]  # what was recognized, as in ImageSet


def check(
    inputs: Sequence[Path],
    dataset: str | None = None,
    *,
    decode: int | None = 0,
    allow_outside: bool = False,
    progress: Progress = no_progress,
) -> DatasetReport:
    """Inspect images without encoding them.

    Args:
        inputs: as in open_images.
        dataset, allow_outside: as in open_images.
        decode: number of images to decode, spread evenly over the set; None for all. Sets of at most ALWAYS_DECODED
            images are decoded completely.
        progress: called with the number of images decoded so far, and the number to decode.
    Raises: UsageError as open_images.
    """
    images = open_images(inputs, dataset, allow_outside=allow_outside)
    known = datasets().get(images.dataset)
    counts = np.bincount(images.labels[images.labels >= 0], minlength=len(images.class_names))
    unreadable = dict(images.encoded.find_unreadable())
    rows = _spread(len(images), None if len(images) <= ALWAYS_DECODED else decode)
    unreadable |= _decode(images, [row for row in rows if row not in unreadable], progress)
    problems = _find_problems(inputs, images, known, unreadable)
    return DatasetReport(
        source=images.source,
        dataset=images.dataset,
        layout=images.layout,
        images=len(images),
        labelled=int((images.labels >= 0).sum()),
        classes=len(images.class_names),
        per_class=(int(counts.min()), int(counts.max())) if len(counts) else None,
        expected_images=known.num_images if known else None,
        expected_classes=known.num_classes if known else None,
        decoded=len(rows),
        problems=tuple(problem for problem in problems if problem.count),
        notes=images.notes,
    )


def parse_decode(text: str) -> int | None:
    """The value of --decode: a number of images, or "all" (None). Raises: UsageError."""
    if text == "all":
        return None
    if not re.fullmatch("[0-9]{1,18}", text):
        raise UsageError(f"--decode '{text}' is not valid", "it must be a number of images, or all")
    return int(text)


def _find_problems(
    inputs: Sequence[Path], images: ImageSet, known: Dataset | None, unreadable: dict[int, str]
) -> list[Problem]:
    """Every kind of problem, including those with a count of 0.

    Args:
        unreadable: reasons by row.
    """
    listed = [f"{images.names[row]}: {reason}" for row, reason in sorted(unreadable.items())]
    problems = [_problem("images that cannot be read", listed, unreadable=True)]
    problems += _check_labels(images)
    problems += _compare_with_published(images, known) if known else _check_synsets(images.class_names)
    if inputs[0].is_dir():
        problems += _check_folders(inputs, images)
    return problems


def _problem(what: str, examples: Iterable[str], *, unreadable: bool = False) -> Problem:
    found = list(examples)
    return Problem(what, len(found), tuple(found[:EXAMPLES]), unreadable)


def _spread(count: int, wanted: int | None) -> list[int]:
    number = count if wanted is None else min(wanted, count)
    rows: list[int] = np.linspace(0, count - 1, number).round().astype(int).tolist()
    return rows


def _decode(images: ImageSet, rows: Sequence[int], progress: Progress) -> dict[int, str]:
    """Rows that cannot be decoded, with the reasons."""

    def reason(row: int) -> str:
        try:
            read_rgb(lambda: images.encoded.open(row), "")
        except UnreadableImage as error:
            return error.why
        return ""

    failed = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for done, (row, why) in enumerate(zip(rows, threads.map(reason, rows), strict=True), start=1):
            if why:
                failed[row] = why
            progress(done, len(rows))
    return failed


def _check_labels(images: ImageSet) -> list[Problem]:
    unlabeled = np.flatnonzero(images.labels < 0)
    has_classes = len(images.class_names) > 0 or images.dataset != ""
    return [
        _problem("images without a label", [images.names[row] for row in unlabeled.tolist()] if has_classes else []),
        _problem("classes that differ only in spelling", spelling_variants(images.class_names)),
    ]


def _compare_with_published(images: ImageSet, known: Dataset) -> list[Problem]:
    """Classes and images that only the published dataset has, or only this one."""
    missing = sorted(set(known.ids).difference(images.class_names))
    unknown = [] if known.has_own_classes else sorted(set(images.class_names).difference(known.ids))
    problems = [
        _problem(f"classes of {known.title} without images", map(_with_human_name, missing)),
        _problem(f"classes that {known.title} does not have", map(_with_human_name, unknown)),
    ]
    difference = known.num_images - len(images)
    if difference:
        what = "images fewer than published" if difference > 0 else "images more than published"
        problems.append(Problem(what, abs(difference), (f"{len(images):,} of {known.num_images:,}",)))
    return problems


def _check_synsets(class_names: Sequence[str]) -> list[Problem]:
    """Synsets that are not in ImageNet-1k, if at least half of the classes are synsets."""
    synsets = {name for name in class_names if SYNSET.fullmatch(name)}
    unknown = sorted(synsets.difference(datasets()["imagenet-val"].ids)) if 2 * len(synsets) >= len(class_names) else ()
    return [_problem("synsets that ImageNet-1k does not have", unknown)]


def _check_folders(inputs: Sequence[Path], images: ImageSet) -> list[Problem]:
    """Files in the class folders that have no image suffix, and folders beside them that contain no images."""
    if images.labels.max() < 0:  # tars, tables, or a flat folder: there are no class folders
        return []
    prefix = "" if len(inputs) > 1 else str(inputs[0])
    with_images = {os.path.join(prefix, os.path.dirname(name)) for name in images.names}
    others: list[str] = []
    for folder in sorted(with_images):
        others += [
            os.path.join(folder, e) for e in _entries(folder, files=True) if not (is_image(e) or is_label_file(e))
        ]
    parents = {os.path.dirname(folder) for folder in with_images if folder not in map(str, inputs)}
    siblings = (os.path.join(folder, e) for folder in sorted(parents) for e in _entries(folder, files=False))
    not_empty = with_images | parents | {os.path.dirname(folder) for folder in parents}
    empty = [path for path in siblings if path not in not_empty]
    return [
        _problem("files without an image suffix in class folders", others),
        _problem("class folders without images", empty),
    ]


def _entries(folder: str, *, files: bool) -> list[str]:
    """Names of the files, or of the folders, in a folder."""
    if not os.path.isdir(folder):  # a folder in a tar
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and (e.is_file() if files else e.is_dir()))


def _with_human_name(class_name: str) -> str:
    human = human_name(class_name)
    return class_name if human == class_name else f"{class_name} ({human})"
