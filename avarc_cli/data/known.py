"""The published datasets that avarc knows: their classes, and the ImageNet-1k classes that count as right for each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

from avarc_cli.data.labels import ASSETS, close_names, imagenet1k, normalize, subset
from avarc_cli.errors import UsageError

NO_DATASET = "none"  # value of --dataset for images of none of these datasets


@dataclass(frozen=True)
class Dataset:
    """A published dataset."""

    name: str  # as options spell it: "imagenet-r"
    title: str  # as papers spell it: "ImageNet-R"
    ids: tuple[str, ...]  # folder names of the classes that ImageNet-1k covers, sorted: synsets, or ObjectNet's objects
    names: tuple[str, ...]  # human name of each class
    accepted: tuple[tuple[int, ...], ...]  # for each class, the ImageNet-1k class indices that count as right
    num_images: int  # images in the published dataset
    num_classes: int  # class folders in the published dataset, including those that ImageNet-1k does not cover
    source: str  # where these facts are from
    border: int = 0  # pixels to crop from each side
    has_styles: bool = False  # whether files are named <style>_<number>

    @cached_property
    def candidates(self) -> tuple[int, ...]:
        """The ImageNet-1k classes to choose from when classifying the dataset, sorted."""
        return tuple(sorted(index for indices in self.accepted for index in indices))

    @property
    def has_own_classes(self) -> bool:
        """Whether its classes are its own instead of ImageNet's, as in ObjectNet."""
        return self.ids != imagenet_ids(self.candidates)

    @cached_property
    def _by_name(self) -> dict[str, str]:
        names = [normalize(name) for name in self.names]
        unique = {name: label for name, label in zip(names, self.ids, strict=True) if names.count(name) == 1}
        return unique | {normalize(label): label for label in self.ids}

    def spellings(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """For each class: its id, its human name, and the synsets that count as right."""
        synsets = map(imagenet_ids, self.accepted)
        return list(zip(self.ids, self.names, synsets, strict=True))

    def id_of(self, class_name: str) -> str | None:
        """The id of a class given by folder name, human name, or (if the classes are ImageNet's) ImageNet-1k index."""
        found = self._by_name.get(normalize(class_name))
        if found is not None or self.has_own_classes or not class_name.isdecimal():
            return found
        index = int(class_name)
        label = imagenet1k().ids[index] if index < len(imagenet1k()) else ""
        return label if label in self._by_name else None


def imagenet_ids(indices: Iterable[int]) -> tuple[str, ...]:
    """The synsets of ImageNet-1k classes."""
    return tuple(imagenet1k().ids[index] for index in indices)


@cache
def datasets() -> dict[str, Dataset]:
    """Every known dataset by name."""
    known = (
        _imagenet("imagenet-val", "ImageNet validation", 50_000, "arXiv:1409.0575"),
        _imagenet("imagenet-train", "ImageNet training", 1_281_167, "arXiv:1409.0575"),
        _imagenet("imagenet-v2", "ImageNet-V2", 10_000, "arXiv:1902.10811"),
        _imagenet("imagenet-a", "ImageNet-A", 7_500, "arXiv:1907.07174", subset_name="imagenet-a"),
        _imagenet("imagenet-r", "ImageNet-R", 30_000, "arXiv:2006.16241", subset_name="imagenet-r", has_styles=True),
        _imagenet("imagenet-sketch", "ImageNet-Sketch", 50_889, "arXiv:1905.13549"),
        _objectnet(),
    )
    return {dataset.name: dataset for dataset in known}


def get_dataset(name: str) -> Dataset:
    """The dataset with this name. Raises: UsageError with the closest names if there is none."""
    if name not in datasets():
        close = " or ".join(close_names(name, datasets()))
        fix = f"did you mean {close}?" if close else f"for images of another dataset: {NO_DATASET}"
        raise UsageError(f"no dataset '{name}'", f"there are {', '.join(datasets())}", fix)
    return datasets()[name]


def _imagenet(
    name: str, title: str, num_images: int, source: str, *, subset_name: str | None = None, has_styles: bool = False
) -> Dataset:
    """A dataset whose classes are those of ImageNet-1k, or a subset of them."""
    space = imagenet1k()
    ids = space.ids if subset_name is None else subset(subset_name)
    indices = tuple(space.ids.index(label) for label in ids)
    return Dataset(
        name=name,
        title=title,
        ids=ids,
        names=tuple(space.names[index] for index in indices),
        accepted=tuple((index,) for index in indices),
        num_images=num_images,
        num_classes=len(ids),
        source=source,
        has_styles=has_styles,
    )


def _objectnet() -> Dataset:
    lines = (ASSETS / "labels" / "objectnet.tsv").read_text("utf-8").splitlines()[1:]
    ids, names, synsets = zip(*(line.split("\t") for line in lines), strict=True)
    index = {label: i for i, label in enumerate(imagenet1k().ids)}
    return Dataset(
        name="objectnet",
        title="ObjectNet",
        ids=ids,
        names=names,
        accepted=tuple(tuple(index[label] for label in several.split()) for several in synsets),
        num_images=50_273,
        num_classes=313,
        source="NeurIPS 2019, objectnet.dev",
        border=2,
    )


# Patterns for folder names in lower case without punctuation. The folder nearest to the images decides, but every
# folder is tried against DATASET_FOLDERS before SPLIT_FOLDERS: ImageNet-R too may be in a folder named `val`.
DATASET_FOLDERS = {
    "imagenet-v2": r"imagenetv2.*",
    "imagenet-a": r"imageneta",
    "imagenet-r": r"imagenetr(endition)?",
    "imagenet-sketch": r"(imagenet)?sketch",
    "objectnet": r"objectnet.*",
}
SPLIT_FOLDERS = {
    "imagenet-val": r"(imagenet(1k)?|ilsvrc(2012)?)?(img)?val(idation)?",
    "imagenet-train": r"(imagenet(1k)?|ilsvrc(2012)?)?(img)?train(ing)?",
}
SYNSET = re.compile(r"n\d{8}")
MAX_LEVELS = 4  # trailing components of a path that may name the dataset


def dataset_from_path(path: str) -> str:
    """The name of the dataset that the folders in a path are named after; "" if there is none."""
    parts = os.path.abspath(path).split(os.sep)[-MAX_LEVELS:]
    folders = [re.sub(r"[^a-z0-9]", "", part.lower()) for part in reversed(parts)]
    for patterns in (DATASET_FOLDERS, SPLIT_FOLDERS):
        for folder in folders:
            for name, pattern in patterns.items():
                if re.fullmatch(pattern, folder):
                    return name
    return ""
