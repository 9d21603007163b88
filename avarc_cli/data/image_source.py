"""Where encoded images are stored: files on disk, or several such sources one after the other."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np

from avarc_cli.errors import UnreadableImage

EMPTY = "the file is empty"


class ImageSource(Protocol):
    """Encoded images in a fixed order. It is pickled to worker processes, which open each image by its row."""

    def __len__(self) -> int: ...

    def open(self, row: int) -> BinaryIO:
        """The encoded image. Raises: OSError or UnreadableImage."""

    def location(self, row: int) -> str:
        """Where the image is stored, for messages: a path, or a position in a larger file."""

    def take(self, rows: np.ndarray) -> ImageSource:
        """The images in these rows, in this order."""

    def find_unreadable(self) -> Iterator[tuple[int, str]]:
        """Rows that cannot be read, each with the reason, as far as this is known without reading any image."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files. The paths are not stored joined: a set may have a million of them."""

    root: str  # the folder that the names are relative to
    names: Sequence[str]  # below root

    def __len__(self) -> int:
        return len(self.names)

    def open(self, row: int) -> BinaryIO:
        return open_regular(self.location(row))

    def location(self, row: int) -> str:
        return os.path.join(self.root, self.names[row])

    def take(self, rows: np.ndarray) -> ImageFiles:
        return ImageFiles(self.root, tuple(self.names[row] for row in rows.tolist()))

    def find_unreadable(self) -> Iterator[tuple[int, str]]:
        for row in range(len(self)):
            try:
                status = os.stat(self.location(row))
            except (OSError, ValueError) as error:
                yield row, str(getattr(error, "strerror", None) or error).lower()
                continue
            if not stat.S_ISREG(status.st_mode):
                yield row, "it is not a regular file"
            elif status.st_size == 0:
                yield row, EMPTY


@dataclass(frozen=True, eq=False)
class JoinedImages:
    """Several sources as one."""

    sources: tuple[ImageSource, ...]  # in order
    source: np.ndarray  # (N,) int64, index into sources
    row: np.ndarray  # (N,) int64, row in that source

    def __len__(self) -> int:
        return len(self.source)

    def open(self, row: int) -> BinaryIO:
        source: ImageSource = self.sources[self.source[row]]
        return source.open(int(self.row[row]))

    def location(self, row: int) -> str:
        source: ImageSource = self.sources[self.source[row]]
        return source.location(int(self.row[row]))

    def take(self, rows: np.ndarray) -> JoinedImages:
        return JoinedImages(self.sources, self.source[rows], self.row[rows])

    def find_unreadable(self) -> Iterator[tuple[int, str]]:
        for number, source in enumerate(self.sources):
            reasons = dict(source.find_unreadable())
            for row in np.flatnonzero(self.source == number) if reasons else ():
                if int(self.row[row]) in reasons:
                    yield int(row), reasons[int(self.row[row])]


def join(sources: Sequence[ImageSource]) -> ImageSource:
    """The images of all sources, in order."""
    if len(sources) == 1:
        return sources[0]
    sizes = [len(source) for source in sources]
    rows = [np.arange(size, dtype=np.int64) for size in sizes]
    return JoinedImages(tuple(sources), np.repeat(np.arange(len(sources)), sizes), np.concatenate(rows))


def check_inside(path: str, folder: str, reason: str) -> None:
    """Raises: UnreadableImage, because of `reason`, when a path leads out of a folder, also by a symbolic link."""
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, root]) != root:
        raise UnreadableImage(f"cannot read '{path}'", reason)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading. Raises: OSError; UnreadableImage if it is not a regular file but, say, a pipe."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block forever
        raise UnreadableImage(f"cannot read '{os.fspath(path)}'", "it is not a regular file")
    return open(path, "rb")
