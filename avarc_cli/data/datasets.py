"""Sets of images: folders, files, text files of paths, tar shards, tables; and parts of sets."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from avarc_cli.data.folders import IMAGE_SUFFIXES, open_folder
from avarc_cli.data.image_source import Files, Pictures, join
from avarc_cli.data.known import datasets
from avarc_cli.data.labels import SHOWN, close_names, imagenet1k, match, normalise
from avarc_cli.data.listing import UNKNOWN, Listing, number_classes, settle, shown
from avarc_cli.data.per_class import first_of_each
from avarc_cli.data.preprocess import Preprocess, read_rgb
from avarc_cli.data.tables import SUFFIXES as TABLE_SUFFIXES
from avarc_cli.data.tables import open_tables
from avarc_cli.data.webdataset import open_shards
from avarc_cli.errors import UnreadableImage, UsageError

LIST_SUFFIXES = frozenset({".lst", ".tsv", ".txt"})
SPLIT = re.compile(r"(?:^|[-_./])(train|validation|val|test)(?=[-_./])")  # part of a shard's or a table's name
IMAGE, LIST = "image files", "a list of image files"
PLAIN = (IMAGE, LIST, "folders", "images side by side")  # layouts that need no word
SPLIT_OF = {"imagenet-train": {"train"}, "imagenet-val": {"val", "validation"}}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order.

    pictures: where they are; labels: (N,) int32 index into class_names, -1 unknown; class_names: sorted, synsets in
    datasets of ImageNet's classes; source: what the user named; names: each path below the source, with forward
    slashes, as caches record it; dataset: which known dataset this is ("imagenet-r"), "" for any other; layout: how
    it lies on disk, for people; notes: what was recognised, and what else the user should know.
    """

    pictures: Pictures
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    names: tuple[str, ...]
    dataset: str = ""
    layout: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The image files, where the set is one of files; a million of them take a gigabyte, so `load` does without."""
        return tuple(Path(self.pictures.where(row)) for row in range(len(self)))

    def load(self, index: int, preprocess: Preprocess) -> np.ndarray:
        """Pixels (size, size, 3), uint8 RGB, of one image; safe to call in worker processes and threads.

        ObjectNet's red border is cut off before anything else.

        Raises: UnreadableImage.
        """
        return load_pixels(lambda: self.pictures.open(index), self.pictures.where(index), self.dataset, preprocess)

    def without_answer(self) -> tuple[str, ...]:
        """The classes of a known dataset that no class of ImageNet-1k answers for: 200 of ObjectNet's."""
        known = datasets().get(self.dataset)
        return tuple(n for n in self.class_names if n not in known.ids) if known and known.of_objects else ()

    def select(self, classes: Sequence[str] | None, per_class: int | None, limit: int | None) -> ImageSet:
        """A part of the set, in the same order.

        classes: keep these only, by id or human name (case does not matter, `_` is a space); class_names shrinks.
        per_class: keep the first so many of each class, in the order of their names (in ImageNet-R, of every style in
        turn); unlabelled images go.
        limit: of what is left, keep the first so many.

        Raises: UsageError for classes the set does not have, numbers below 1, and per_class without labels.
        """
        for option, number in (("per class", per_class), ("in all", limit)):
            if number is not None and number < 1:
                raise UsageError(f"{number} images {option} were asked for, must be at least 1")
        kept = self if classes is None else self._of_classes(classes)
        if per_class is not None:
            kept = kept._first_of_each(per_class)
        return kept if limit is None else kept._take(np.arange(min(limit, len(kept))))

    def _of_classes(self, classes: Sequence[str]) -> ImageSet:
        known = self._spellings()
        missing = [name for name in classes if normalise(name) not in known]
        if missing:
            close = close_names(missing[0], known) or self.class_names[:SHOWN]
            why = f"its classes are named like {', '.join(close)}" if close else "its images have no labels"
            raise UsageError(f"'{self.source}' has no images of {shown(missing)}", why)
        wanted = sorted({index for name in classes for index in known[normalise(name)]})
        renumbered = np.full(len(self.class_names) + 1, UNKNOWN, dtype=np.int32)  # the last entry answers for -1
        renumbered[wanted] = np.arange(len(wanted))
        labels = renumbered[self.labels]
        names = tuple(self.class_names[index] for index in wanted)
        return replace(self, labels=labels, class_names=names)._take(np.flatnonzero(labels != UNKNOWN))

    def _spellings(self) -> dict[str, list[int]]:
        """Classes by everything they may be called: folder, human name, and the synsets of ImageNet that they are."""
        spelled: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(self.class_names):
            spelled[normalise(name)].append(index)
        known, space = datasets().get(self.dataset), imagenet1k()
        also: list[tuple[str, tuple[str, ...]]]
        if known is None or not known.of_objects:
            found = zip(self.class_names, match(self.class_names, space).tolist(), strict=True)
            also = [(name, (space.names[i], space.ids[i])) for name, i in found if i != UNKNOWN]
        else:
            also = [(label, (title, *synsets)) for label, title, synsets in known.spellings()]
        own = {spelling: list(indices) for spelling, indices in spelled.items()}
        for name, others in also:
            for other in others:
                spelled[normalise(other)] += own.get(normalise(name), [])
        return {spelling: sorted(set(indices)) for spelling, indices in spelled.items() if indices}

    def _first_of_each(self, per_class: int) -> ImageSet:
        if not self.class_names:
            raise UsageError(
                f"cannot take images of each class of '{self.source}'",
                "its images have no labels",
                "put them in one sub-folder a class, or use --limit",
            )
        by_style = bool(self.dataset) and datasets()[self.dataset].styles
        return self._take(first_of_each(self.labels, self.names, per_class, by_style=by_style))

    def _take(self, rows: np.ndarray) -> ImageSet:
        names = tuple(self.names[row] for row in rows.tolist())
        return replace(self, pictures=self.pictures.take(rows), labels=self.labels[rows], names=names)


def load_pixels(open_file: Callable[[], BinaryIO], where: str, dataset: str, preprocess: Preprocess) -> np.ndarray:
    """As `ImageSet.load`, of one image of this dataset, "" for any; `where` is how errors call it."""
    image = read_rgb(open_file, where)
    known = datasets().get(dataset)
    if known and known.border:
        border, (width, height) = known.border, image.size
        if min(width, height) <= 2 * border:
            raise UnreadableImage(f"cannot read '{where}'", f"{width} x {height} pixels are all border")
        image = image.crop((border, border, width - border, height - border))
    return preprocess.square(image, where)


def open_images(inputs: Sequence[Path], dataset: str | None = None) -> ImageSet:
    """The images of folders, files, lists, tar shards and tables, without opening any of them.

    A folder with class sub-folders gives labelled images (a class is a sub-folder that holds images, at any depth;
    images beside the sub-folders are unlabelled); a flat folder gives unlabelled ones. Hidden files, and in folders
    files whose suffix is no image's, are passed over. A folder without images may hold .tar, .parquet or .arrow files
    instead. A .txt, .tsv or .lst file lists paths, relative to itself, one a line, with the class after a tab if
    known. Any other file is an image.
    Order: a folder's images sorted by name; lists, shards, tables and several inputs as given. With several inputs a
    name begins with the input it came from.

    Args:
        dataset: which known dataset it is (docs/datasets.md), "none" for none of them; found out when None.
    Raises: UsageError for a path that does not exist or cannot be listed, when there is no image at all, and for what
        a known dataset's layout lacks.
    """
    listings = []
    for group in _grouped(inputs):
        listing = _open_images(group, inputs, dataset) if _kind(group[0]) == IMAGE else _open_input(group, dataset)
        if len(inputs) > 1 and len(group) == 1 and listing.layout != IMAGE:
            listing = replace(listing, names=[f"{group[0].as_posix()}/{name}" for name in listing.names])
        listings.append(listing)
    source = ", ".join(path.as_posix() for path in inputs[:SHOWN])
    source += f" and {len(inputs) - SHOWN} more" if len(inputs) > SHOWN else ""
    if not any(len(listing.names) for listing in listings):
        kinds = " ".join(sorted({*IMAGE_SUFFIXES, *TABLE_SUFFIXES, ".tar"}))
        raise UsageError(f"no images in '{source}'", f"looked for {kinds}", "name a folder of images, or files")
    return _merge(listings, source)


def _merge(listings: Sequence[Listing], source: str) -> ImageSet:
    used = [np.unique(listing.labels[listing.labels != UNKNOWN]) for listing in listings]
    present = {listing.classes[i] for listing, rows in zip(listings, used, strict=True) for i in rows.tolist()}
    class_names = tuple(sorted(present))
    position = {name: i for i, name in enumerate(class_names)}
    labels = []
    for listing in listings:
        renumbered = [position.get(name, UNKNOWN) for name in listing.classes]
        labels.append(np.array([*renumbered, UNKNOWN], dtype=np.int32)[listing.labels])  # the last answers for -1
    names = tuple(name for listing in listings for name in listing.names)
    kinds = {listing.dataset for listing in listings}
    dataset = kinds.pop() if len(kinds) == 1 else ""
    if len(kinds) and any(datasets()[kind].border for kind in kinds if kind):
        raise UsageError(f"'{source}' mixes ObjectNet with other images", "only its own have a border to cut")
    notes = [note for listing in listings for note in (_recognised(listing), *listing.notes) if note]
    same = same_classes(class_names)
    notes += [f"classes that differ only in spelling: {shown(same)}"] if same else []
    return ImageSet(
        pictures=join([listing.pictures for listing in listings]),
        labels=np.concatenate(labels),
        class_names=class_names,
        source=source,
        names=names,
        dataset=dataset,
        layout="; ".join(dict.fromkeys(listing.layout for listing in listings)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _recognised(listing: Listing) -> str:
    if listing.dataset:
        return f"recognised {datasets()[listing.dataset].title} ({listing.dataset}): {listing.layout}"
    return "" if listing.layout in PLAIN else listing.layout


def same_classes(class_names: Sequence[str]) -> list[str]:
    """Names that differ only in case, spaces and underscores: "great white shark and great_white_shark"."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        by_name[normalise(name)].append(name)
    return [" and ".join(names) for names in by_name.values() if len(names) > 1]


def _grouped(inputs: Sequence[Path]) -> list[list[Path]]:
    """Inputs in runs of what belongs together: shards, tables, images; folders, lists and the rest each alone."""
    runs: list[tuple[str, list[Path]]] = []
    for path in inputs:
        kind = _kind(path)
        if runs and kind and runs[-1][0] == kind:
            runs[-1][1].append(path)
        else:
            runs.append((kind, [path]))
    return [paths for _, paths in runs]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    try:
        if not path.is_file():  # folders too may be called x.parquet
            return ""
    except ValueError:  # a path with a null character: told when it is opened
        return ""
    if suffix == ".tar" or suffix in TABLE_SUFFIXES:
        return suffix
    return "" if suffix in LIST_SUFFIXES else IMAGE


def _open_input(group: Sequence[Path], dataset: str | None) -> Listing:
    path = group[0]
    try:
        if path.is_dir():
            return _open_folder(path, dataset)
        if not path.exists():
            raise UsageError(f"'{path}' does not exist", fix="name a folder of images, image files, or a list of paths")
        suffix = path.suffix.lower()
        if suffix in LIST_SUFFIXES:
            return _open_list(path, dataset)
        if suffix == ".tar" or suffix in TABLE_SUFFIXES:
            reader = open_shards if suffix == ".tar" else open_tables
            folder = path.parent.as_posix() if len(group) == 1 else ""
            return reader(folder, [path.name if folder else each.as_posix() for each in group], dataset)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"cannot open '{path}'", reason.lower()) from error
    return _open_images(group, group, dataset)  # a pipe, say: told when it is read


def _open_images(group: Sequence[Path], inputs: Sequence[Path], dataset: str | None) -> Listing:
    """Single files, whatever their suffix."""
    paths = tuple(path.as_posix() for path in group)
    names = paths if len(inputs) > 1 else (group[0].name,)
    unknown = np.full(len(group), UNKNOWN, dtype=np.int32)
    return settle(Listing(Files("", paths), names, unknown, (), layout=IMAGE), dataset, paths[0])


def _open_folder(folder: Path, dataset: str | None) -> Listing:
    """Images, or, where there are none, the shards or tables in it."""
    listing = open_folder(folder, dataset)
    if len(listing.names):
        return listing
    for suffixes, reader in (((".tar",), open_shards), (TABLE_SUFFIXES, open_tables)):
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in suffixes)
        files = [name for name in files if not any(part.startswith(".") for part in name.split("/"))]
        if files:
            return reader(str(folder), _one_split(files, dataset, folder), dataset)
    return listing


def _one_split(files: list[str], dataset: str | None, folder: Path) -> list[str]:
    """The files of one split, where their names speak of several. Raises: UsageError when none is chosen."""
    found = {name: SPLIT.search(name) for name in files}
    splits = {match[1] for match in found.values() if match}
    if len(splits) < 2:
        return files
    chosen = SPLIT_OF.get(dataset or "", set()) & splits
    if not chosen:
        fix = f"name the files of one: '{folder}'/*{min(splits)}*"
        raise UsageError(f"'{folder}' holds several splits", ", ".join(sorted(splits)), fix)
    return [name for name, match in found.items() if match and match[1] in chosen]


def _open_list(path: Path, dataset: str | None) -> Listing:
    # Names that are no UTF-8 survive as surrogates. Not splitlines(): it also splits at characters names may hold.
    text = path.read_text("utf-8-sig", errors="surrogateescape")
    names: list[str] = []
    class_names: list[str | None] = []
    for line in text.split("\n"):
        name, _, class_name = line.partition("\t")
        if name.strip():
            names.append(name)
            class_names.append(class_name.strip() or None)
    labels, classes = number_classes(class_names)
    pictures = Files(path.parent.as_posix(), names)
    names = [PurePosixPath(name).as_posix() for name in names]
    return settle(Listing(pictures, names, labels, classes, layout=LIST), dataset, str(path))
