"""Where the pictures of a set lie: files on disk, or several such places one after the other."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np

from avarc_cli.errors import UnreadableImage

EMPTY = "it is empty"


class Pictures(Protocol):
    """Encoded pictures in a fixed order. They travel to worker processes, which open each by its row."""

    def __len__(self) -> int: ...

    def open(self, row: int) -> BinaryIO:
        """The encoded picture. Raises: OSError or UnreadableImage."""

    def where(self, row: int) -> str:
        """Its place, for people."""

    def take(self, rows: np.ndarray) -> Pictures:
        """These rows, in this order."""

    def broken(self) -> Iterator[tuple[int, str]]:
        """Rows that cannot be read, and why, as far as that shows without reading them."""


@dataclass(frozen=True)
class Files:
    """Image files. root: the folder that their names are relative to; a million names cost a million short strings."""

    root: str
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, row: int) -> BinaryIO:
        return open_regular(self.where(row))

    def where(self, row: int) -> str:
        return os.path.join(self.root, self.names[row])

    def take(self, rows: np.ndarray) -> Files:
        return Files(self.root, tuple(self.names[row] for row in rows.tolist()))

    def broken(self) -> Iterator[tuple[int, str]]:
        for row in range(len(self)):
            try:
                status = os.stat(self.where(row))
            except (OSError, ValueError) as error:
                yield row, str(getattr(error, "strerror", None) or error).lower()
                continue
            if not stat.S_ISREG(status.st_mode):
                yield row, "it is not a regular file"
            elif status.st_size == 0:
                yield row, EMPTY


@dataclass(frozen=True, eq=False)
class Joined:
    """Several places as one. part, row: which picture of which part each is, (N,) int64."""

    parts: tuple[Pictures, ...]
    part: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.part)

    def open(self, row: int) -> BinaryIO:
        part: Pictures = self.parts[self.part[row]]
        return part.open(int(self.row[row]))

    def where(self, row: int) -> str:
        part: Pictures = self.parts[self.part[row]]
        return part.where(int(self.row[row]))

    def take(self, rows: np.ndarray) -> Joined:
        return Joined(self.parts, self.part[rows], self.row[rows])

    def broken(self) -> Iterator[tuple[int, str]]:
        for number, part in enumerate(self.parts):
            reasons = dict(part.broken())
            for row in np.flatnonzero(self.part == number) if reasons else ():
                if int(self.row[row]) in reasons:
                    yield int(row), reasons[int(self.row[row])]


def join(parts: Sequence[Pictures]) -> Pictures:
    """The pictures of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    sizes = [len(part) for part in parts]
    rows = [np.arange(size, dtype=np.int64) for size in sizes]
    return Joined(tuple(parts), np.repeat(np.arange(len(parts)), sizes), np.concatenate(rows))


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A file to read. Raises: OSError; UnreadableImage for what is no regular file, such as a pipe."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block for ever
        raise UnreadableImage(f"cannot read '{os.fspath(path)}'", "it is not a regular file")
    return open(path, "rb")
