"""Label spaces: what a model's class indices mean, and how a user's or a dataset's class names find them."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from avarc_cli.errors import UsageError

ASSETS = files("avarc_cli") / "assets"
SHOWN = 5  # names listed in one message
UNKNOWN = -1  # index that stands for a class that is not known


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a model, in the order of its class indices.

    ids: unique names (synsets, or the class names themselves); names: what people call them (not always unique:
    ImageNet has two cranes and two maillots); long_names: with all synonyms, as datasets on the hub have them.
    """

    name: str
    ids: tuple[str, ...]
    names: tuple[str, ...]
    long_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@cache
def imagenet1k() -> LabelSpace:
    """The 1000 classes of ImageNet-1k: ids are synsets, in sorted order."""
    lines = (ASSETS / "labels" / "imagenet1k.tsv").read_text("utf-8").splitlines()[1:]
    _, ids, names, long_names = zip(*(line.split("\t") for line in lines), strict=True)
    return LabelSpace("imagenet1k", ids, names, long_names)


@cache
def subset_names() -> tuple[str, ...]:
    """Names of the class subsets that come with avarc."""
    return tuple(sorted(entry.name.removesuffix(".txt") for entry in (ASSETS / "subsets").iterdir()))


def subset(spec: str) -> tuple[str, ...]:
    """The classes of a named subset ("imagenet100", "imagenet-r"), or of a text file with one class a line.

    Raises: UsageError when it is neither, or the file holds no class or is not text.
    """
    if spec in subset_names():
        return _lines((ASSETS / "subsets" / f"{spec}.txt").read_text("utf-8"))
    if not os.path.isfile(spec):
        why = f"it is neither a file nor one of {', '.join(subset_names())}"
        raise UsageError(f"no class subset '{spec}'", why, _suggestion(spec, subset_names()))
    try:
        classes = _lines(Path(spec).read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        fix = "give a text file, one class a line"
        raise UsageError(f"cannot read the class list '{spec}'", str(error), fix) from error
    if not classes:
        raise UsageError(f"the class list '{spec}' is empty", fix="write one class a line")
    return classes


def resolve_classes(spec: str, space: LabelSpace) -> list[int]:
    """Indices in the space, sorted and unique, of what a user wrote.

    spec: "all", "0,5,7" (indices, in a space whose ids are no numbers themselves), comma-separated ids or human names,
    the name of a subset, or a text file with one of these a line. Classes win over a file of the same name.

    Raises: UsageError naming the first few unknown or ambiguous ones, with the closest names.
    """
    listed = tuple(part.strip() for part in spec.split(",") if part.strip())
    if spec == "all":
        return list(range(len(space)))
    finder = _finder(space)
    is_list = bool(listed) and all(finder.find(name) is not None for name in listed)
    if not is_list and (spec in subset_names() or os.path.isfile(spec)):
        listed = subset(spec)
    if not listed:
        raise UsageError("the list of classes is empty", fix="name classes like 0,5,7, or a file with one a line")
    found = {name: finder.find(name) for name in listed}
    unknown = [name for name, index in found.items() if index is None]
    if unknown:
        raise finder.unknown(unknown)
    return sorted({index for index in found.values() if index is not None})


def match(class_names: Sequence[str], space: LabelSpace) -> np.ndarray:
    """Index in the space of each of a dataset's classes, (K,) int64; -1 where there is none.

    By id, else by human name (case does not matter, `_` is a space). Never by order, and never by a name that two
    classes share.
    """
    finder = _finder(space)
    found = (finder.named(name) for name in class_names)
    return np.array([-1 if index is None else index for index in found], dtype=np.int64)


def human_name(class_name: str) -> str:
    """What people call a class: "goldfish" for n01443537; names that are no synsets stay as they are."""
    index = _finder(imagenet1k()).by_id.get(class_name)
    return class_name if index is None else imagenet1k().names[index]


def normalise(name: str) -> str:
    """A class name without what people vary: case, underscores, repeated spaces."""
    return " ".join(name.replace("_", " ").split()).casefold()


def close_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like this one, best first."""
    by_norm = {normalise(other): other for other in known}
    return [by_norm[n] for n in difflib.get_close_matches(normalise(name), by_norm, count)]


class _Finder:
    """Look-up tables of a label space."""

    def __init__(self, space: LabelSpace) -> None:
        self.space = space
        self.count = Counter(map(normalise, space.names))
        self.by_id = {label: index for index, label in enumerate(space.ids)}
        self.by_name: dict[str, int] = {}
        for names in (space.long_names, space.names, space.ids):  # an id wins over a name
            normalised = [normalise(name) for name in names]
            count = Counter(normalised)
            self.by_name |= {name: index for index, name in enumerate(normalised) if count[name] == 1}
            shared = [name for name in count if count[name] > 1]  # also of letters: A and a are one when normalised
            for name in shared:
                self.by_name.pop(name, None)
        # In a space of digits "7" is a class name. Taking it for an index as well would give it two meanings.
        self.indices_allowed = not any(label.isdecimal() for label in space.ids)

    def named(self, name: str) -> int | None:
        """The class with this id or name."""
        index = self.by_id.get(name)
        return self.by_name.get(normalise(name)) if index is None else index

    def find(self, name: str) -> int | None:
        """The class with this id, name or index."""
        index = self.named(name)
        if index is None and self.indices_allowed and name.isdecimal() and int(name) < len(self.space):
            return int(name)
        return index

    def unknown(self, names: Sequence[str]) -> UsageError:
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        what = f"not classes of {self.space.name}: {shown}"
        shared = next((name for name in names if self.count[normalise(name)] > 1), None)
        if shared is not None:
            both = zip(self.space.ids, self.space.names, strict=True)
            same = [label for label, name in both if normalise(name) == normalise(shared)]
            return UsageError(what, f"'{shared}' is the name of several classes", f"use an id: {' or '.join(same)}")
        indices = f", indices 0 to {len(self.space) - 1}" if self.indices_allowed else ""
        why = f"it has {len(self.space)} classes{indices}"
        return UsageError(what, why, _suggestion(names[0], (*self.space.names, *self.space.ids)))


@cache
def _finder(space: LabelSpace) -> _Finder:
    return _Finder(space)


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = close_names(name, known)
    return f"did you mean {' or '.join(close)}?" if close else f"the first ones are {', '.join(known[:SHOWN])}"


def _lines(text: str) -> tuple[str, ...]:
    """Lines without blank ones, comments (#) and repetitions, in order."""
    stripped = (line.strip() for line in text.splitlines())
    return tuple(dict.fromkeys(line for line in stripped if line and not line.startswith("#")))
