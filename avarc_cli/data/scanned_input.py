"""The images found in one input, before several inputs become one set, and which known dataset they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from avarc_cli.data.image_source import ImageSource
from avarc_cli.data.known import NO_DATASET, Dataset, dataset_from_path, datasets, get_dataset
from avarc_cli.data.labels import UNKNOWN, imagenet1k
from avarc_cli.errors import MAX_NAMES, UsageError, shorten_list

# The smallest fraction of class folders that must carry the dataset's own names. Of ObjectNet's 313 folders (36 %) only
# 113 are in its list of classes.
MIN_MATCH = 0.5
MIN_MATCH_OBJECTNET = 0.3


@dataclass(frozen=True, eq=False)
class ScannedInput:
    """The images of one input, in order."""

    encoded: ImageSource  # the encoded images
    names: Sequence[str]  # (N,) path of each image below the input
    labels: np.ndarray  # (N,) int32, index into classes, or UNKNOWN
    classes: Sequence[str]  # each class once, in any order
    dataset: str = ""  # name of the known dataset, "" for any other
    layout: str = ""  # how the images are stored, in words
    notes: tuple[str, ...] = ()  # what else the user should know


def number_classes(class_names: Iterable[str | None]) -> tuple[np.ndarray, list[str]]:
    """Number classes in the order in which they appear.

    Args:
        class_names: (N,) the class of each image; None if it is not known.
    Returns: labels, (N,) int32, UNKNOWN for None; and the classes that they index.
    """
    numbers: dict[str | None, int] = {None: UNKNOWN}
    labels = np.fromiter((numbers.setdefault(name, len(numbers) - 1) for name in class_names), dtype=np.int32)
    return labels, [name for name in numbers if name is not None]


def resolve_dataset(scanned: ScannedInput, requested: str | None, path: str) -> ScannedInput:
    """Decide which known dataset the images belong to, and rename their classes to its ids.

    Args:
        requested: name of a dataset, "none", or None to detect it.
        path: of the images; may contain the name of a dataset.
    Raises: UsageError when a dataset is requested and has none of the classes.
    """
    if requested == NO_DATASET:
        return scanned
    if requested is None:
        name = scanned.dataset or dataset_from_path(path)
        known = datasets().get(name)
        return _rename_classes(scanned, known) if known and _has_classes_of(known, scanned.classes) else scanned
    chosen = get_dataset(requested)
    numbers = [] if chosen.has_own_classes else [name for name in scanned.classes if name.isdecimal()]
    outside = [number for number in numbers if int(number) >= len(imagenet1k())]
    if outside:
        why = "ImageNet's class numbers go from 0 to 999; numbers from 1, as in its devkit, may be in another order"
        raise UsageError(
            f"'{path}' has a class {outside[0]}", why, f"name the classes by synset, or add --dataset {NO_DATASET}"
        )
    if numbers:
        note = "classes are numbers, taken for indices of ImageNet-1k (0 to 999)"
        scanned = replace(scanned, notes=(*scanned.notes, note))
    if scanned.classes and not any(chosen.id_of(name) for name in scanned.classes):
        examples = ", ".join(chosen.ids[:MAX_NAMES])
        why = f"its classes are {shorten_list(sorted(scanned.classes))}; {chosen.title} has classes like {examples}"
        why = "; ".join([why, *scanned.notes])  # perhaps the labels are in what is not used
        raise UsageError(f"'{path}' is not {chosen.title}", why, f"omit --dataset, or use --dataset {NO_DATASET}")
    return _rename_classes(scanned, chosen)


def _has_classes_of(known: Dataset, classes: Sequence[str]) -> bool:
    """Whether enough of the classes carry the names that the dataset's own folders have."""
    is_numbered = known.name == "imagenet-v2" and all(name.isdecimal() for name in classes)
    matching = len(classes) if is_numbered else len(set(known.ids).intersection(classes))
    min_match = MIN_MATCH_OBJECTNET if known.has_own_classes else MIN_MATCH
    return matching > 0 and matching >= min_match * len(classes)


def _rename_classes(scanned: ScannedInput, known: Dataset) -> ScannedInput:
    """Replace folder and column names by class ids; different names of one class become one class."""
    renamed = [known.id_of(name) or name for name in scanned.classes]
    ids = list(dict.fromkeys(renamed))
    position = {label: i for i, label in enumerate(ids)}
    new_label = np.array([*(position[name] for name in renamed), UNKNOWN], dtype=np.int32)  # the last entry is for -1
    return replace(scanned, labels=new_label[scanned.labels], classes=ids, dataset=known.name)
