"""Class names for datasets whose labels are numbers, as in tar shards and tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avarc_cli.data.known import NO_DATASET, dataset_from_path, datasets, get_dataset
from avarc_cli.data.labels import imagenet1k, match
from avarc_cli.errors import UsageError, shorten_list

MIN_RESOLVED = 0.5  # fraction of names that must be class names of ImageNet-1k for a list to be ImageNet's
MIN_IN_PLACE = 0.95  # fraction of those that must also be at ImageNet's position; the others are spelled differently


def unique_names(names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Unique class names for a list whose position is the class number, and notes for the user.

    If the names are at the positions that ImageNet-1k, -A or -R have them, the result is their synsets: this
    distinguishes the two cranes, and makes small differences of spelling irrelevant. In any other list, names that
    occur twice get their number appended.
    """
    space = imagenet1k()
    found = match(names, space)
    for ids in (space.ids, datasets()["imagenet-a"].ids, datasets()["imagenet-r"].ids):
        if len(ids) == len(names):
            expected = np.array([space.ids.index(label) for label in ids])
            in_place, resolved = int((found == expected).sum()), int((found >= 0).sum())
            if resolved >= MIN_RESOLVED * len(names) and in_place >= MIN_IN_PLACE * resolved:
                return list(ids), ()
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if not repeated:
        return list(names), ()
    note = f"several classes have the same name ({shorten_list(sorted(repeated))}): their number is appended"
    return [f"{name} ({i})" if name in repeated else name for i, name in enumerate(names)], (note,)


def interpret_numbers(numbers: Sequence[str], requested: str | None, path: str) -> tuple[list[str], str]:
    """Class names for class numbers without a list of names, and a phrase that says how the numbers were read.

    For an ImageNet dataset they are indices of ImageNet-1k. For a dataset of 200 classes that some of them cannot
    index, they are positions in its sorted list of classes. Without a dataset, a number is its own name.

    Args:
        numbers: the distinct class numbers, as text.
        requested: name of a dataset, "none", or None to infer it from `path`.
    Raises: UsageError for numbers that a requested dataset does not have.
    """
    name = dataset_from_path(path) if requested is None else requested
    known = get_dataset(name) if name and name != NO_DATASET else None
    if known is None or known.has_own_classes:
        return list(numbers), "class numbers"
    by_index = [known.id_of(number) for number in numbers]
    if all(by_index):
        return [label for label in by_index if label], "indices of ImageNet-1k"
    if all(int(number) < len(known.ids) for number in numbers):
        how = f"positions in the list of {len(known.ids)} classes of {known.title}"
        return [known.ids[int(number)] for number in numbers], how
    if requested is None:
        return list(numbers), "class numbers"
    bad = [number for number, label in zip(numbers, by_index, strict=True) if label is None]
    why = f"it has no class with the number {shorten_list(bad)}"
    raise UsageError(f"'{path}' is not {known.title}", why, "omit --dataset")
