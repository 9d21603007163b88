"""What an input holds before its images are put into a set, and how it is found to be a known dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from avarc_cli.data.image_source import Pictures
from avarc_cli.data.known import NONE, Dataset, dataset, datasets, named_by_path
from avarc_cli.data.labels import SHOWN, human_name, imagenet1k, match
from avarc_cli.errors import UsageError

UNKNOWN = -1  # the label of an image whose class nobody told


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of one input, in order.

    pictures: where they are; names: theirs below the input; labels: (N,) int32 index into classes, -1 unknown;
    classes: every class once, in any order; dataset: which known one this is, or ""; layout: how it lies on disk, for
    people; notes: what the user should know.
    """

    pictures: Pictures
    names: Sequence[str]
    labels: np.ndarray
    classes: Sequence[str]
    dataset: str = ""
    layout: str = ""
    notes: tuple[str, ...] = ()


def number_classes(class_names: Iterable[str | None]) -> tuple[np.ndarray, list[str]]:
    """Labels (N,) int32 and the classes they number, of each image's class name or None."""
    numbers: dict[str | None, int] = {None: UNKNOWN}
    labels = np.fromiter((numbers.setdefault(name, len(numbers) - 1) for name in class_names), dtype=np.int32)
    return labels, [name for name in numbers if name is not None]


def settle(listing: Listing, wanted: str | None, path: str) -> Listing:
    """The listing with the classes of the dataset that it is of.

    wanted: the user's word (a dataset, "none", or None to find out); path: where the images lie, which may name it.
    Raises: UsageError when a dataset is wanted and no class is one of its.
    """
    if wanted == NONE:
        return listing
    if wanted is None:
        guess = listing.dataset or named_by_path(path)
        return _renamed(listing, datasets()[guess]) if guess and _fits(listing.classes, datasets()[guess]) else listing
    chosen = dataset(wanted)
    if listing.classes and not any(chosen.id_of(name) for name in listing.classes):
        shown = ", ".join(sorted(listing.classes)[:SHOWN])
        why = f"its classes are {shown}; {chosen.title} has classes like {', '.join(chosen.ids[:SHOWN])}"
        raise UsageError(f"'{path}' is not {chosen.title}", why, f"leave --dataset out, or use --dataset {NONE}")
    return _renamed(listing, chosen)


def _fits(classes: Sequence[str], guess: Dataset) -> bool:
    """Whether at least half of the classes are written as the dataset's own folders are.

    ObjectNet's folders hold 113 objects that ImageNet knows, and 200 others.
    """
    numbered = guess.name == "imagenet-v2" and all(name.isdecimal() for name in classes)
    own = len(classes) if numbered else len(set(guess.ids).intersection(classes))
    return own > 0 and own >= (0.3 if guess.of_objects else 0.5) * len(classes)


def _renamed(listing: Listing, known: Dataset) -> Listing:
    """With ids in place of what folders and columns are called; several names of one class become one."""
    named = [known.id_of(name) or name for name in listing.classes]
    ids = list(dict.fromkeys(named))
    position = {label: i for i, label in enumerate(ids)}
    renumbered = np.array([*(position[name] for name in named), UNKNOWN], dtype=np.int32)  # the last answers for -1
    return replace(listing, labels=renumbered[listing.labels], classes=ids, dataset=known.name)


def name_positions(names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Unique class names for a list in which the position is the class number, and notes about it.

    A list whose names sit where ImageNet-1k, -A or -R have them stands for their synsets: that tells its two cranes
    apart, and spares it small differences of spelling. Names that occur twice in other lists get their number.
    """
    space = imagenet1k()
    found = match(names, space)
    for ids in (space.ids, datasets()["imagenet-a"].ids, datasets()["imagenet-r"].ids):
        if len(ids) == len(names):
            here = np.array([space.ids.index(label) for label in ids])
            right, resolved = int((found == here).sum()), int((found >= 0).sum())
            if 2 * resolved >= len(names) and right >= 0.95 * resolved:
                return list(ids), ()
    shared = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    notes = (f"several classes are called {', '.join(sorted(shared)[:SHOWN])}: they are kept apart by number",)
    unique = [f"{name} ({i})" if name in shared else name for i, name in enumerate(names)]
    return unique, notes if shared else ()


def numbered_classes(numbers: Sequence[str], wanted: str | None, path: str) -> tuple[list[str], str]:
    """Class names for class numbers that come without a list of names, and in words what the numbers were taken for.

    With an ImageNet dataset they are indices of ImageNet-1k; with one of 200 classes, if they cannot be that, places
    in its sorted 200. Without one, a number is its own name.
    Raises: UsageError for numbers that a wanted dataset does not have.
    """
    name = named_by_path(path) if wanted is None else wanted
    if not name or name == NONE or datasets()[name].of_objects:
        return list(numbers), "class numbers"
    known = datasets()[name]
    as_index = [known.id_of(number) for number in numbers]
    if all(as_index):
        return [label for label in as_index if label], "indices of ImageNet-1k"
    if all(int(number) < len(known.ids) for number in numbers):
        return [known.ids[int(number)] for number in numbers], f"places among the {len(known.ids)} of {known.title}"
    if wanted is None:
        return list(numbers), "class numbers"
    bad = [number for number, label in zip(numbers, as_index, strict=True) if label is None]
    raise UsageError(
        f"'{path}' is not {known.title}", f"it has class numbers like {', '.join(bad[:SHOWN])}", "leave --dataset out"
    )


def shown(classes: Iterable[str], count: int = SHOWN) -> str:
    """A few classes by the names that people know, and how many more there are."""
    every = list(classes)
    more = f" and {len(every) - count} more" if len(every) > count else ""
    return ", ".join(human_name(name) for name in every[:count]) + more
