"""The datasets of this field: their classes, which classes of ImageNet-1k answer for each, and how they are told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

from avarc_cli.data.labels import ASSETS, close_names, imagenet1k, normalise, subset
from avarc_cli.errors import UsageError

NONE = "none"  # what --dataset says for a folder that is none of these


@dataclass(frozen=True)
class Dataset:
    """A published dataset.

    name: as options have it; title: as papers have it; ids: its classes that ImageNet-1k covers, as folders are named
    (synsets; objects in ObjectNet), sorted; names: what people call them; answers: for each, the indices of the
    ImageNet-1k classes that count as right; images: how many are published; classes: folders that are published;
    border: pixels to cut from each side; styles: file names are style_number; source: where the facts come from.
    """

    name: str
    title: str
    ids: tuple[str, ...]
    names: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]
    images: int
    classes: int
    source: str
    border: int = 0
    styles: bool = False

    @cached_property
    def candidates(self) -> tuple[int, ...]:
        """The ImageNet-1k classes that a prediction may be, sorted."""
        return tuple(sorted(index for answers in self.answers for index in answers))

    @property
    def of_objects(self) -> bool:
        """Whether its classes are other things than ImageNet's."""
        return self.ids != imagenet_ids(self.candidates)

    @cached_property
    def _by_name(self) -> dict[str, str]:
        names = [normalise(name) for name in self.names]
        unique = {name: label for name, label in zip(names, self.ids, strict=True) if names.count(name) == 1}
        return unique | {normalise(label): label for label in self.ids}

    def spellings(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Of each class: id, human name, and the synsets that answer for it."""
        synsets = map(imagenet_ids, self.answers)
        return list(zip(self.ids, self.names, synsets, strict=True))

    def id_of(self, class_name: str) -> str | None:
        """The id of a class by folder name, by human name, or by ImageNet-1k index where classes are ImageNet's."""
        found = self._by_name.get(normalise(class_name))
        if found is None and class_name.isdecimal() and not self.of_objects and int(class_name) < len(imagenet1k()):
            found = imagenet1k().ids[int(class_name)]
            return found if found in self._by_name else None
        return found


def imagenet_ids(indices: Iterable[int]) -> tuple[str, ...]:
    """Synsets of ImageNet-1k classes."""
    return tuple(imagenet1k().ids[index] for index in indices)


@cache
def datasets() -> dict[str, Dataset]:
    """Every known dataset by name."""
    known = (
        _of_imagenet("imagenet-val", "ImageNet validation", 50_000, "arXiv:1409.0575"),
        _of_imagenet("imagenet-train", "ImageNet training", 1_281_167, "arXiv:1409.0575"),
        _of_imagenet("imagenet-v2", "ImageNet-V2", 10_000, "arXiv:1902.10811"),
        _of_imagenet("imagenet-a", "ImageNet-A", 7_500, "arXiv:1907.07174", part="imagenet-a"),
        _of_imagenet("imagenet-r", "ImageNet-R", 30_000, "arXiv:2006.16241", part="imagenet-r", styles=True),
        _of_imagenet("imagenet-sketch", "ImageNet-Sketch", 50_889, "arXiv:1905.13549"),
        _objectnet(),
    )
    return {dataset.name: dataset for dataset in known}


def dataset(name: str) -> Dataset:
    """A dataset by name. Raises UsageError for a name that is none, with the closest ones."""
    if name not in datasets():
        close = " or ".join(close_names(name, datasets()))
        fix = f"did you mean {close}?" if close else f"for a folder that is none of these: {NONE}"
        raise UsageError(f"no dataset '{name}'", f"there are {', '.join(datasets())}", fix)
    return datasets()[name]


def _of_imagenet(
    name: str, title: str, images: int, source: str, *, part: str | None = None, styles: bool = False
) -> Dataset:
    space = imagenet1k()
    ids = space.ids if part is None else subset(part)
    indices = tuple(space.ids.index(label) for label in ids)
    names = tuple(space.names[index] for index in indices)
    answers = tuple((index,) for index in indices)
    return Dataset(name, title, ids, names, answers, images, len(ids), source, styles=styles)


def _objectnet() -> Dataset:
    lines = (ASSETS / "labels" / "objectnet.tsv").read_text("utf-8").splitlines()[1:]
    ids, names, synsets = zip(*(line.split("\t") for line in lines), strict=True)
    index = {label: i for i, label in enumerate(imagenet1k().ids)}
    answers = tuple(tuple(index[label] for label in several.split()) for several in synsets)
    return Dataset("objectnet", "ObjectNet", ids, names, answers, 50_273, 313, "NeurIPS 2019, objectnet.dev", border=2)


# What people call the folders, without case and punctuation. The nearest folder to the images decides, but `val` and
# `train` only after the rest: ImageNet-R too may lie in a folder `val`.
FOLDERS = {
    "imagenet-v2": r"imagenetv2.*",
    "imagenet-a": r"imageneta",
    "imagenet-r": r"imagenetr(endition)?",
    "imagenet-sketch": r"(imagenet)?sketch",
    "objectnet": r"objectnet.*",
}
SPLITS = {
    "imagenet-val": r"(imagenet(1k)?|ilsvrc(2012)?)?(img)?val(idation)?",
    "imagenet-train": r"(imagenet(1k)?|ilsvrc(2012)?)?(img)?train(ing)?",
}
SYNSET = re.compile(r"n\d{8}")
LEVELS = 4  # folders above the images that are looked at


def named_by_path(path: str) -> str:
    """The dataset that a path speaks of, or "" where it names none."""
    parts = os.path.abspath(path).split(os.sep)[-LEVELS:]
    spoken = [re.sub(r"[^a-z0-9]", "", part.lower()) for part in reversed(parts)]
    for patterns in (FOLDERS, SPLITS):
        for part in spoken:
            for name, pattern in patterns.items():
                if re.fullmatch(pattern, part):
                    return name
    return ""
