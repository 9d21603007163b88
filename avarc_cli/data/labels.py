"""Label spaces: what a model's class indices mean, and how class names of users and datasets are matched with them."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from avarc_cli.errors import MAX_NAMES, UsageError, shorten_list
from avarc_cli.words import counted

ASSETS = files("avarc_cli") / "assets"
UNKNOWN = -1  # index that stands for a class that is not known


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a model, in the order of its class indices."""

    name: str  # for messages
    ids: tuple[str, ...]  # unique: synsets, or the class names themselves
    names: tuple[str, ...]  # human names; not always unique: ImageNet has two cranes and two maillots
    long_names: tuple[str, ...] = ()  # with all synonyms, as in datasets on the Hugging Face hub
    numbered: str = ""  # where nothing names the classes: the order of the numbers that are the ids (class_names.py)

    def __len__(self) -> int:
        return len(self.ids)


@cache
def imagenet1k() -> LabelSpace:
    """The 1000 classes of ImageNet-1k; the ids are synsets, sorted."""
    lines = (ASSETS / "labels" / "imagenet1k.tsv").read_text("utf-8").splitlines()[1:]
    _, ids, names, long_names = zip(*(line.split("\t") for line in lines), strict=True)
    return LabelSpace("imagenet1k", ids, names, long_names)


@cache
def subset_names() -> tuple[str, ...]:
    """Names of the class subsets that are included in avarc."""
    return tuple(sorted(entry.name.removesuffix(".txt") for entry in (ASSETS / "subsets").iterdir()))


def subset(spec: str) -> tuple[str, ...]:
    """The classes of a named subset ("imagenet100", "imagenet-r"), or of a text file with one class per line.

    Raises: UsageError if it is neither, or if the file contains no classes or is not text.
    """
    if spec in subset_names():
        return _lines((ASSETS / "subsets" / f"{spec}.txt").read_text("utf-8"))
    if not os.path.isfile(spec):
        why = f"it is neither a file nor one of {', '.join(subset_names())}"
        raise UsageError(f"no class subset '{spec}'", why, _suggestion(spec, subset_names()))
    try:
        classes = _lines(Path(spec).read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        fix = "use a text file with one class per line"
        raise UsageError(f"cannot read the class list '{spec}'", str(error), fix) from error
    if not classes:
        raise UsageError(f"the class list '{spec}' is empty", fix="write one class per line")
    return classes


def resolve_classes(spec: str, space: LabelSpace) -> list[int]:
    """The class indices that a user's text refers to, sorted and unique.

    Args:
        spec: "all"; comma-separated ids, human names, or indices ("0,5,7"; not in a space that has numbers as ids);
            the name of a subset; or a text file with one of these per line. Class names take precedence over files.
    Raises: UsageError with the first few unknown or ambiguous names, and the closest known ones.
    """
    listed = tuple(part.strip() for part in spec.split(",") if part.strip())
    if spec == "all":
        return list(range(len(space)))
    lookup = _lookup(space)
    if (whole := lookup.by_id_or_name(spec)) is not None:  # a caption, or an ImageNet class with synonyms, has commas
        return [whole]
    is_list = bool(listed) and all(lookup.resolve(name) is not None for name in listed)
    if not is_list and (spec in subset_names() or os.path.isfile(spec)):
        listed = subset(spec)
    if not listed:
        raise UsageError("the list of classes is empty", fix="write classes like 0,5,7, or a file with one per line")
    found = {name: lookup.resolve(name) for name in listed}
    unknown = [name for name, index in found.items() if index is None]
    if unknown:
        raise lookup.unknown(unknown)
    return sorted({index for index in found.values() if index is not None})


def resolve_all(specs: Iterable[str], space: LabelSpace) -> tuple[int, ...]:
    """Ids of the classes that any of these name, in this order, each once. Raises: as `resolve_classes`."""
    return tuple(dict.fromkeys(class_id for spec in specs for class_id in resolve_classes(spec, space)))


def match(class_names: Sequence[str], space: LabelSpace) -> np.ndarray:
    """The index in the space of each class of a dataset, (K,) int64; UNKNOWN if there is none.

    Matches by id, else by human name (ignoring case; `_` is a space). Never by order, and never by a name that two
    classes have in common. Numbers that are padded with zeros are the class indices of a model without class names:
    they have the same order as numbers and as text.
    """
    lookup = _lookup(space)
    if space.numbered and any(re.fullmatch(r"0\d+", name) for name in class_names):
        numbers = (int(name) if name.isdecimal() else len(space) for name in class_names)
        return np.array([number if number < len(space) else UNKNOWN for number in numbers], dtype=np.int64)
    found = (lookup.by_id_or_name(name) for name in class_names)
    return np.array([UNKNOWN if index is None else index for index in found], dtype=np.int64)


def human_name(class_name: str) -> str:
    """The human name of a class: "goldfish" for n01443537. Names that are not synsets are returned unchanged."""
    index = _lookup(imagenet1k()).by_id.get(class_name)
    return class_name if index is None else imagenet1k().names[index]


def normalize(name: str) -> str:
    """A class name without differences of case, underscores, repeated spaces, and composed or decomposed letters."""
    return " ".join(compose(name).replace("_", " ").split()).casefold()


def compose(name: str) -> str:
    """A name with composed letters (Unicode's NFC); macOS and archives made there have decomposed ones."""
    return unicodedata.normalize("NFC", name)


def close_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that are most similar to this one, best first."""
    by_norm = {normalize(other): other for other in known}
    return [by_norm[n] for n in difflib.get_close_matches(normalize(name), by_norm, count)]


class _Lookup:
    """Tables from names to class indices of a label space."""

    def __init__(self, space: LabelSpace) -> None:
        self.space = space
        self.count = Counter(map(normalize, space.names))
        self.by_id = {label: index for index, label in enumerate(space.ids)}
        self.by_name: dict[str, int] = {}
        for names in (space.long_names, space.names, space.ids):  # an id takes precedence over a name
            normalized = [normalize(name) for name in names]
            count = Counter(normalized)
            self.by_name |= {name: index for index, name in enumerate(normalized) if count[name] == 1}
            ambiguous = [name for name in count if count[name] > 1]  # includes ids: "A" and "a" when normalized
            for name in ambiguous:
                self.by_name.pop(name, None)
        # In a space of digits "7" is a class name. Reading it as an index too would give it two meanings.
        self.indices_allowed = not any(label.isdecimal() for label in space.ids)

    def by_id_or_name(self, name: str) -> int | None:
        """The class with this id or name."""
        index = self.by_id.get(name)
        return self.by_name.get(normalize(name)) if index is None else index

    def resolve(self, name: str) -> int | None:
        """The class with this id, name or index."""
        index = self.by_id_or_name(name)
        if index is None and self.indices_allowed and re.fullmatch("[0-9]{1,9}", name) and int(name) < len(self.space):
            return int(name)
        return index

    def unknown(self, names: Sequence[str]) -> UsageError:
        """The error for names that are not classes of the space."""
        what = f"not classes of {self.space.name}: {shorten_list(names)}"
        ambiguous = next((name for name in names if self.count[normalize(name)] > 1), None)
        if ambiguous is not None:
            both = zip(self.space.ids, self.space.names, strict=True)
            same = [label for label, name in both if normalize(name) == normalize(ambiguous)]
            return UsageError(what, f"'{ambiguous}' is the name of several classes", f"use an id: {' or '.join(same)}")
        indices = f", indices 0 to {len(self.space) - 1}" if self.indices_allowed else ""
        why = f"it has {counted(len(self.space), 'class')}{indices}"
        return UsageError(what, why, _suggestion(names[0], (*self.space.names, *self.space.ids)))


@cache
def _lookup(space: LabelSpace) -> _Lookup:
    return _Lookup(space)


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = close_names(name, known)
    return f"did you mean {' or '.join(close)}?" if close else f"the first ones are {', '.join(known[:MAX_NAMES])}"


def _lines(text: str) -> tuple[str, ...]:
    """The lines of a text in order, without blank lines, comments (#) and repetitions."""
    stripped = (line.strip() for line in text.splitlines())
    return tuple(dict.fromkeys(line for line in stripped if line and not line.startswith("#")))
