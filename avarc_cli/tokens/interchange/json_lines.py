"""1d-tokenizer's JSON lines: {"class_id": 5, "tokens": [1, 2, ...]} on each, -1 for an unknown class.

A line is one view. 1d-tokenizer writes the ten crops of an image on consecutive lines, but does not say so in the file.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from avarc_cli.data.image_source import open_regular
from avarc_cli.errors import CacheError
from avarc_cli.tokens.interchange.codes import MAX_RECORD, Codes, FileParts, NumberedNames, find_outside, not_tokens
from avarc_cli.words import counted

KIND = "JSON lines"
KEYS = ("class_id", "tokens")
MAX_TOKEN = 2**62


def open_codes(path: Path, vocab_size: int, views: int) -> Codes:
    """Read all lines once: check them, and note where each is.

    Args:
        vocab_size: tokens are below it.
        views: lines of each image.
    Raises: CacheError naming the first bad line; OSError.
    """
    listed = _Listed()
    with open_regular(path) as file:
        for number, start, line in _lines(file, path):
            try:
                label, tokens = _parse_line(line)
                if (wrong := find_outside(tokens, vocab_size)) is not None:
                    raise ValueError(wrong)
                listed.add(start, len(line), number, label, len(tokens), views)
            except ValueError as error:
                raise not_tokens(f"{path}:{number}", str(error)) from None
    count = len(listed.starts)
    if count % views:
        why = f"{counted(count, 'line')}, {views} an image"
        raise CacheError(f"the last image of '{path}' is incomplete", why, "name the right number with --views")
    every = (listed.starts, listed.sizes, listed.numbers, listed.labels)
    starts, sizes, numbers, labels = (np.array(values, dtype=np.int64) for values in every)
    first, last = starts[::views], (starts + sizes)[views - 1 :: views]
    numbers = numbers[::views]
    return Codes(
        kind=KIND,
        encoded=FileParts(str(path), first, last - first, numbers),
        parse=_parse_lines,
        names=NumberedNames(f"{path.name}:", numbers),
        labels=labels[::views],
        label_names=lambda row: f"{path}:{numbers[row]}",
        is_checked=True,
    )


@dataclass
class _Listed:
    """The lines of a file so far, without their tokens."""

    starts: array[int] = field(default_factory=partial(array, "q"))  # lists would take five times the memory
    sizes: array[int] = field(default_factory=partial(array, "q"))
    numbers: array[int] = field(default_factory=partial(array, "q"))
    labels: array[int] = field(default_factory=partial(array, "q"))
    length: int = 0  # tokens of each

    def add(self, start: int, size: int, number: int, label: int, length: int, views: int) -> None:
        """Raises: ValueError when the line does not go with those before it."""
        if self.starts and length != self.length:
            raise ValueError(f"it has {counted(length, 'token')}, the lines before it have {self.length:,}")
        if len(self.starts) % views and label != self.labels[-1]:
            raise ValueError(f"its class is {label}, that of the line before it, which is of the same image, another")
        self.length = length
        self.starts.append(start)
        self.sizes.append(size)
        self.numbers.append(number)
        self.labels.append(label)


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number from 1, position and content of each line that is not empty. Raises: CacheError for a huge one."""
    number, start = 0, 0
    while line := file.readline(MAX_RECORD + 1):
        number += 1
        if len(line) > MAX_RECORD:
            raise not_tokens(f"{path}:{number}", f"the line is longer than {MAX_RECORD >> 20} MiB")
        if line.strip():
            yield number, start, line
        start += len(line)


def _parse_line(line: bytes) -> tuple[int, np.ndarray]:
    """Class number and tokens (L,) of a line. Raises: ValueError with the reason."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: also numbers of thousands of digits, and text in other codes
        record = None
    if not isinstance(record, dict) or not all(key in record for key in KEYS):
        raise ValueError('it is not a JSON object like {"class_id": 5, "tokens": [1, 2, ...]}')
    label, tokens = record["class_id"], record["tokens"]
    if type(label) is not int or not -1 <= label < MAX_TOKEN:
        raise ValueError(f"class_id is {_show(label)}, not a class number or -1")
    if not isinstance(tokens, list) or not tokens:
        raise ValueError(f"tokens is {_show(tokens)}, not a list of numbers")
    if set(map(type, tokens)) != {int}:
        wrong = next(token for token in tokens if type(token) is not int)
        raise ValueError(f"token {_show(wrong)}, at position {tokens.index(wrong)}, is not a whole number")
    if max(map(abs, tokens)) >= MAX_TOKEN:
        raise ValueError("a token has more than 18 digits")
    return label, np.array(tokens, dtype=np.int64)


def _show(value: Any) -> str:
    return json.dumps(value)[:40]


def _parse_lines(record: bytes) -> np.ndarray:
    """Tokens (S, L) of the lines of one image. Raises: ValueError."""
    views = [_parse_line(line)[1] for line in record.split(b"\n") if line.strip()]
    if len({len(view) for view in views}) != 1:
        raise ValueError("its lines are of different lengths")
    return np.stack(views)


def write(file: BinaryIO, labels: np.ndarray, blocks: Iterable[np.ndarray]) -> None:
    """Write one line for every view, those of an image one after the other.

    Args:
        labels: (N,) class numbers, -1 where unknown.
        blocks: tokens of consecutive images, (n, S, L).
    Raises: OSError.
    """
    row = 0
    for block in blocks:
        for views in block.tolist():
            for tokens in views:
                file.write(json.dumps({"class_id": int(labels[row]), "tokens": tokens}).encode() + b"\n")
            row += 1
