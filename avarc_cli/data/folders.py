"""Folders of images: one sub-folder a class, and the layouts in which the known datasets lie on disk."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avarc_cli.data import imagenet_val as truth
from avarc_cli.data.image_source import Files
from avarc_cli.data.known import NONE, SYNSET, dataset, datasets, named_by_path
from avarc_cli.data.listing import Listing, number_classes, settle
from avarc_cli.errors import UsageError

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
})
# fmt: on
GLANCE = 2000  # entries of a folder that tell its layout: more than any known dataset has classes
WRAPPERS = re.compile(r"(images?|data|clsloc|ilsvrc.*|imagenet.*|objectnet.*|sketch|train(ing)?|val(idation)?|img.*)")
DEPTH = 4  # folders between what the user names and the classes: ILSVRC/Data/CLS-LOC/val


def open_folder(folder: Path, wanted: str | None) -> Listing:
    """The images of a folder, sorted by name.

    A class is a sub-folder that holds images, at any depth; images beside the sub-folders are unlabelled. Known
    datasets are found, and their classes named by id, also where they lie some folders deeper.

    Args:
        wanted: the dataset it is; None to find out; "none" for none.
    Raises: UsageError for a folder with several parts (train and val), and as truth.read_truth and listing.settle.
    """
    place = _Place(str(folder), "") if wanted == NONE else _find(str(folder), wanted)
    names = sorted(walk(place.folder, place.below, frozenset()))
    pictures = Files(str(folder), names)
    start = len(place.below)
    if wanted in (None, "imagenet-val") and truth.is_flat(names[:GLANCE]):
        return _flat(place.folder, names, pictures)
    labels, classes = number_classes(_class_of(name, start) for name in names)
    layout = f"folders in {place.below}" if place.below else "folders"
    found = "" if wanted == NONE else place.dataset
    listing = Listing(pictures, names, labels, classes, found, layout if classes else "images side by side")
    return settle(listing, wanted, place.folder)


def walk(folder: str, below: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Names of the images in a folder and its sub-folders; links are followed, but never back to an ancestor."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(entry.path, f"{below}{entry.name}/", ancestors | {identity})
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and (
                entry.is_file() or not os.path.exists(entry.path)  # a dead link is listed, later, as unreadable
            ):
                yield below + entry.name


def _class_of(name: str, start: int) -> str | None:
    stop = name.find("/", start)
    return None if stop < 0 else name[start:stop]


def _flat(folder: str, names: Sequence[str], pictures: Files) -> Listing:
    synsets, told_by = truth.read_truth(folder, names)
    labels, classes = number_classes(synsets)
    layout = "validation images side by side, " + (f"labels from {told_by}" if told_by else "without labels")
    notes = () if told_by else (f"these ImageNet validation images have no labels: {truth.HOW}",)
    return Listing(pictures, names, labels, classes, "imagenet-val", layout, notes)


@dataclass(frozen=True)
class _Place:
    """A folder that may hold classes; below: its name below what the user named, with a slash at its end."""

    folder: str
    below: str

    @cached_property
    def _entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.folder) as entries:
            return [entry for entry in itertools.islice(entries, GLANCE) if not entry.name.startswith(".")]

    @cached_property
    def folders(self) -> list[str]:
        return sorted(entry.name for entry in self._entries if entry.is_dir())

    @cached_property
    def files(self) -> list[str]:
        return sorted(e.name for e in self._entries if os.path.splitext(e.name)[1].lower() in IMAGE_SUFFIXES)

    @cached_property
    def dataset(self) -> str:
        """The dataset that lies here, as folder and file names tell; "" for none."""
        if not self.folders:
            return "imagenet-val" if truth.is_flat(self.files) else ""
        spoken = named_by_path(self.folder)
        if spoken == "imagenet-v2" and all(name.isdecimal() for name in self.folders):
            return spoken
        if len(set(datasets()["objectnet"].ids).intersection(self.folders)) >= (1 if spoken == "objectnet" else 100):
            return "objectnet"
        synsets = [name for name in self.folders if SYNSET.fullmatch(name)]
        return self._of_synsets(spoken, synsets) if synsets and 2 * len(synsets) >= len(self.folders) else ""

    def _of_synsets(self, spoken: str, synsets: list[str]) -> str:
        if spoken and spoken != "objectnet":
            return spoken
        first = next(walk(os.path.join(self.folder, synsets[0]), "", frozenset()), "")
        if truth.VALIDATION.match(first):
            return "imagenet-val"
        if re.match(rf"{SYNSET.pattern}_\d+\.JPEG", first):
            return "imagenet-train"
        same = (name for name in ("imagenet-a", "imagenet-r") if list(datasets()[name].ids) == synsets)
        return next(same, "")


def _find(folder: str, wanted: str | None) -> _Place:
    """Where the classes of a known dataset begin; the folder itself when none is recognised.

    Raises: UsageError when there are several such places and none is the wanted one.
    """
    if wanted is not None:
        dataset(wanted)
    here = _Place(folder, "")
    places = list(_known_places(here, DEPTH))
    fitting = [place for place in places if place.dataset == wanted] or places
    if len(fitting) > 1:
        found = ", ".join(f"{place.below.rstrip('/')} ({place.dataset})" for place in fitting)
        fix = f"name one of them: {fitting[-1].folder}"
        raise UsageError(f"'{folder}' holds several sets of images", found, fix)
    return fitting[0] if fitting else here


def _known_places(place: _Place, depth: int) -> Iterator[_Place]:
    """Places of known datasets, here or in folders whose names say that they only wrap them."""
    if place.dataset:
        yield place
    elif depth and not place.files:
        for name in place.folders:
            if WRAPPERS.fullmatch(re.sub(r"[^a-z0-9]", "", name.lower())):
                inner = _Place(os.path.join(place.folder, name), f"{place.below}{name}/")
                yield from _known_places(inner, depth - 1)
