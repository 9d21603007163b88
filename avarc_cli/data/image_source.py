"""Where encoded images are stored: files on disk, or several such sources one after the other."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np

from avarc_cli.errors import UnreadableImage

EMPTY = "the file is empty"

DIGEST_SIZE = 16
"""Bytes of the digest of an encoded image (blake2b)."""

NO_DIGEST = bytes(DIGEST_SIZE)
"""In place of the digest of an image that cannot be opened."""

MAX_DIGESTED = 2**30
"""Bytes of an encoded image that its digest covers: no image that is decoded has more."""

NO_FILE = (-1, -1)
"""In place of the stamp of a file that is not there."""


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

    def stamps(self) -> np.ndarray:
        """Size in bytes and modification time in nanoseconds of the file that holds each image, (N, 2) int64.

        Where they are the same, the image is taken to be the same. NO_FILE for a file that is not there.
        """


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

    def stamps(self) -> np.ndarray:
        return stamp_files(self.location(row) for row in range(len(self)))


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

    def stamps(self) -> np.ndarray:
        stamps_N2 = np.empty((len(self), 2), dtype=np.int64)
        for number, source in enumerate(self.sources):
            mine = np.flatnonzero(self.source == number)
            stamps_N2[mine] = source.take(self.row[mine]).stamps()
        return stamps_N2


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


def stamp_files(paths: Iterable[str]) -> np.ndarray:
    """Size and modification time of each file, or NO_FILE, (N, 2) int64 (`ImageSource.stamps`)."""
    return np.fromiter(map(_stamp, paths), dtype=np.dtype((np.int64, 2)))


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a path with a null character
        return NO_FILE
    return status.st_size, status.st_mtime_ns


def digest(file: BinaryIO) -> bytes:
    """Digest of an encoded image, by which it is known to be the same; the file is at its start again afterwards.

    Raises: OSError.
    """
    hasher, left = hashlib.blake2b(digest_size=DIGEST_SIZE), MAX_DIGESTED
    while block := file.read(min(2**20, left)):
        hasher.update(block)
        left -= len(block)
    file.seek(0)
    return hasher.digest()


def digest_of(source: ImageSource, row: int) -> bytes:
    """Digest of an image of a source; NO_DIGEST where it cannot be opened or read."""
    try:
        with source.open(row) as file:
            return digest(file)
    except (OSError, ValueError, UnreadableImage):
        return NO_DIGEST
