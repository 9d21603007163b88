"""Sets of images on disk: a folder, files, or a text file of paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from avarc_cli.data.labels import SHOWN, close_names, normalise
from avarc_cli.errors import UsageError

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
})
# fmt: on
LIST_SUFFIXES = frozenset({".lst", ".tsv", ".txt"})
UNKNOWN = -1  # the label of an image whose class nobody told


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order.

    paths: where the files are; labels: (N,) int32 index into class_names, -1 unknown; class_names: sorted;
    source: what the user named; names: each path below the source, with forward slashes, as caches record it.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, classes: Sequence[str] | None, per_class: int | None, limit: int | None) -> ImageSet:
        """A part of the set, in the same order.

        classes: keep these only (case does not matter, `_` is a space); class_names shrinks to them.
        per_class: keep the first so many of each class, in the order of their names; unlabelled images go.
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
        known = {normalise(name): index for index, name in enumerate(self.class_names)}
        missing = [name for name in classes if normalise(name) not in known]
        if missing:
            shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
            close = close_names(missing[0], self.class_names) or self.class_names[:SHOWN]
            why = f"its classes are named like {', '.join(close)}" if close else "its images have no labels"
            raise UsageError(f"'{self.source}' has no images of {shown}", why)
        wanted = sorted({known[normalise(name)] for name in classes})
        renumbered = np.full(len(self.class_names) + 1, UNKNOWN, dtype=np.int32)  # the last entry answers for -1
        renumbered[wanted] = np.arange(len(wanted))
        labels = renumbered[self.labels]
        names = tuple(self.class_names[index] for index in wanted)
        return ImageSet(self.paths, labels, names, self.source, self.names)._take(np.flatnonzero(labels != UNKNOWN))

    def _first_of_each(self, per_class: int) -> ImageSet:
        if not self.class_names:
            raise UsageError(
                f"cannot take images of each class of '{self.source}'",
                "its images have no labels",
                "put them in one sub-folder a class, or use --limit",
            )
        seen = np.zeros(len(self.class_names), dtype=np.int64)
        rows = []
        for row in sorted(range(len(self)), key=self.names.__getitem__):
            label = self.labels[row]
            if label != UNKNOWN and seen[label] < per_class:
                seen[label] += 1
                rows.append(row)
        return self._take(np.sort(np.array(rows, dtype=np.int64)))

    def _take(self, rows: np.ndarray) -> ImageSet:
        paths, names = tuple(self.paths[r] for r in rows), tuple(self.names[r] for r in rows)
        return ImageSet(paths, self.labels[rows], self.class_names, self.source, names)


@dataclass(frozen=True)
class _Found:
    """One image of an input: where, its name below that input, and its class if it has one."""

    path: Path
    name: str
    class_name: str | None = None


def open_images(inputs: Sequence[Path]) -> ImageSet:
    """The images of folders, files and lists, without opening any of them.

    A folder with class sub-folders gives labelled images (a class is a sub-folder that holds images, at any depth;
    images beside the sub-folders are unlabelled); a flat folder gives unlabelled ones. Hidden files, and in folders
    files whose suffix is no image's, are passed over. A .txt, .tsv or .lst file lists paths, relative to itself, one
    a line, with the class after a tab if known. Any other file is an image.
    Order: a folder's images sorted by name; lists and several inputs as given. With several inputs a name begins with
    the input it came from.

    Raises: UsageError for a path that does not exist or cannot be listed, and when there is no image at all.
    """
    found: list[_Found] = []
    for path in inputs:
        prefix = f"{path.as_posix()}/" if len(inputs) > 1 else ""
        found += _open_input(path, prefix)
    source = ", ".join(path.as_posix() for path in inputs[:SHOWN])
    source += f" and {len(inputs) - SHOWN} more" if len(inputs) > SHOWN else ""
    if not found:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError(f"no images in '{source}'", f"looked for {kinds}", "name a folder of images, or files")
    class_names = tuple(sorted({image.class_name for image in found if image.class_name is not None}))
    index: dict[str | None, int] = {name: i for i, name in enumerate(class_names)}
    labels = np.array([index.get(image.class_name, UNKNOWN) for image in found], dtype=np.int32)
    return ImageSet(
        tuple(image.path for image in found), labels, class_names, source, tuple(image.name for image in found)
    )


def _open_input(path: Path, prefix: str) -> list[_Found]:
    try:
        if path.is_dir():
            return _open_folder(path, prefix)
        if not path.exists():
            raise UsageError(f"'{path}' does not exist", fix="name a folder of images, image files, or a list of paths")
        if path.suffix.lower() in LIST_SUFFIXES:
            return _open_list(path, prefix)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"cannot open '{path}'", reason.lower()) from error
    return [_Found(path, path.as_posix() if prefix else path.name)]


def _open_folder(folder: Path, prefix: str) -> list[_Found]:
    found = []
    for name in sorted(_walk(str(folder), "", frozenset())):
        class_name, slash, _ = name.partition("/")
        found.append(_Found(folder / name, prefix + name, class_name if slash else None))
    return found


def _walk(folder: str, below: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[str]:
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
                yield from _walk(entry.path, f"{below}{entry.name}/", ancestors | {identity})
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and (
                entry.is_file() or not os.path.exists(entry.path)  # a dead link is listed, later, as unreadable
            ):
                yield below + entry.name


def _open_list(path: Path, prefix: str) -> list[_Found]:
    # Names that are no UTF-8 survive as surrogates. Not splitlines(): it also splits at characters names may hold.
    text = path.read_text("utf-8-sig", errors="surrogateescape")
    found = []
    for line in text.split("\n"):
        name, _, class_name = line.partition("\t")
        if name.strip():
            posix = PurePosixPath(name).as_posix()
            found.append(_Found(path.parent / name, prefix + posix, class_name.strip() or None))
    return found
