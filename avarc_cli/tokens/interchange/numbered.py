"""Folders of files that are called after numbers: 0.npy, 1.npy, ..."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from avarc_cli.errors import CacheError, shorten_list

SUFFIX = ".npy"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")


def list_numbers(folder: Path) -> np.ndarray:
    """The numbers that the array files of a folder are called after, increasing, (n,) int64; other files are ignored.

    Raises: CacheError for an array file that is not called after a number; OSError.
    """
    numbers: list[int] = []
    others: list[str] = []
    for name in _array_files(folder):
        stem = name[: -len(SUFFIX)]
        if _NUMBER.fullmatch(stem):
            numbers.append(int(stem))
        else:
            others.append(name)
    if others:
        why = f"its files are numbered from 0; it has {shorten_list(sorted(others))}"
        raise CacheError(f"'{folder}' is not a folder of codes", why, "move the other files away")
    return np.sort(np.array(numbers, dtype=np.int64))


def first_gap(numbers: np.ndarray) -> int | None:
    """The first number that is missing, before the last of these, which increase; None if they are 0 to n - 1."""
    gaps = np.flatnonzero(numbers != np.arange(len(numbers)))
    return int(gaps[0]) if len(gaps) else None


def numbered_folders(folder: Path) -> list[int]:
    """The numbers that sub-folders are called after, increasing. Raises: OSError."""
    with os.scandir(folder) as entries:
        return sorted(int(entry.name) for entry in entries if _NUMBER.fullmatch(entry.name) and entry.is_dir())


def _array_files(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                yield entry.name
