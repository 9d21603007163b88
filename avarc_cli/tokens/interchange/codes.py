"""The tokens of images as another program stored them: listed, with labels, and read one record at a time.

Shapes: N images, S views, L tokens.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, overload

import numpy as np

from avarc_cli.data.image_source import ImageSource, open_regular, stamp_files
from avarc_cli.errors import CacheError, UnreadableImage

MAX_RECORD = 2**26
"""Bytes of one image's record; ten views of 1,024 tokens as JSON take less than a hundred thousand."""


@dataclass(frozen=True, eq=False)
class FileParts:
    """Records in one file (`ImageSource`)."""

    path: str
    """Of the file."""
    starts: np.ndarray
    """(N,) int64: where each record begins, in bytes."""
    sizes: np.ndarray
    """(N,) int64: bytes of each."""
    numbers: np.ndarray
    """(N,) int64: the row, or line, of each, for messages."""

    def __len__(self) -> int:
        return len(self.starts)

    def open(self, row: int) -> BinaryIO:
        with open_regular(self.path) as file:
            file.seek(int(self.starts[row]))
            return io.BytesIO(file.read(int(self.sizes[row])))

    def read(self, rows: range) -> Iterator[bytes]:
        """The records in these consecutive rows. Raises: OSError or UnreadableImage."""
        with open_regular(self.path) as file:
            for row in rows:
                if file.tell() != self.starts[row]:
                    file.seek(int(self.starts[row]))
                yield file.read(int(self.sizes[row]))

    def location(self, row: int) -> str:
        return f"{self.path}:{self.numbers[row]}"

    def take(self, rows: np.ndarray) -> FileParts:
        return FileParts(self.path, self.starts[rows], self.sizes[rows], self.numbers[rows])

    def find_unreadable(self) -> Iterator[tuple[int, str]]:
        size = os.stat(self.path).st_size
        for row in np.flatnonzero(self.starts + self.sizes > size).tolist():
            yield row, "the file is cut short"

    def stamps(self) -> np.ndarray:
        return np.repeat(stamp_files([self.path]), len(self), axis=0)


@dataclass(frozen=True, eq=False)
class NumberedNames(Sequence[str]):
    """Names that differ in a number. They are made when they are looked up: a set may have ten millions."""

    prefix: str
    """Before the number."""
    numbers: np.ndarray
    """(N,) int64."""
    suffix: str = ""
    """Behind it."""

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [f"{self.prefix}{number}{self.suffix}" for number in self.numbers[index].tolist()]
        return f"{self.prefix}{self.numbers[index]}{self.suffix}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Codes:
    """The tokens of N images."""

    kind: str
    """The format, in words."""
    encoded: ImageSource
    """Their records."""
    parse: Callable[[bytes], np.ndarray]
    """Record -> tokens (S, L), whole numbers of any type. Raises: ValueError with the reason."""
    names: Sequence[str]
    """(N,) of the records, as the cache will call the images."""
    labels: np.ndarray
    """(N,) int64: class numbers; -1 where unknown."""
    label_names: Callable[[int], str]
    """Row -> where its label is, for messages."""
    is_checked: bool = False
    """Whether listing the records has read and checked the tokens of all of them."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: range) -> Iterator[tuple[bytes, np.ndarray]]:
        """Records in consecutive rows, each with its tokens (S, L). Raises: CacheError naming one that is not right."""
        records = self._records(rows)
        for row in rows:
            try:
                record = next(records)
                tokens = self.parse(record)
            except (OSError, ValueError, UnreadableImage) as error:
                raise not_tokens(self.encoded.location(row), _reason(error)) from error
            yield record, tokens

    def _records(self, rows: range) -> Iterator[bytes]:
        """Raises: OSError, UnreadableImage, or ValueError for a huge record."""
        if isinstance(self.encoded, FileParts):
            yield from self.encoded.read(rows)
            return
        for row in rows:
            with self.encoded.open(row) as file:
                record = file.read(MAX_RECORD + 1)
            if len(record) > MAX_RECORD:
                raise ValueError(f"it is larger than {MAX_RECORD >> 20} MiB, too large for the tokens of one image")
            yield record


@dataclass(frozen=True)
class Expected:
    """What every image of a source must have."""

    views: int
    """S."""
    num_tokens: int
    """L."""
    vocab_size: int
    """Tokens are below it."""

    def check(self, tokens: np.ndarray, location: str) -> np.ndarray:
        """The tokens of one image as a cache stores them, (S, L) uint16. Raises: CacheError naming the image."""
        if tokens.shape != (self.views, self.num_tokens):
            had, has = (f"{views} x {length}" for views, length in ((self.views, self.num_tokens), tokens.shape))
            raise not_tokens(location, f"it has {has} tokens (views x length), the images before it {had}")
        if (wrong := find_outside(tokens, self.vocab_size)) is not None:
            raise not_tokens(location, wrong)
        return tokens.astype(np.uint16)


def find_outside(tokens: np.ndarray, vocab_size: int) -> str | None:
    """What is wrong with the first token outside of [0, vocab_size); None if there is none."""
    if int(tokens.min()) >= 0 and int(tokens.max()) < vocab_size:
        return None
    flat = tokens.reshape(-1)
    place = int(np.flatnonzero((flat < 0) | (flat >= vocab_size))[0])
    return f"token {flat[place]}, at position {place % tokens.shape[-1]}, is outside of the vocabulary of {vocab_size}"


def not_tokens(location: str, why: str) -> CacheError:
    """The error for a record that cannot be imported."""
    return CacheError(f"cannot import '{location}'", why, "correct it, and run the same command again")


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableImage):
        return error.why
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
