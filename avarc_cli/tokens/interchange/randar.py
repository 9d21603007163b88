"""RandAR's folders: one for each class number, with files that are called after the images' numbers.

A file holds int64 (S, L). RandAR numbers the images of all classes together, from 0, in any order of classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from avarc_cli.data.image_source import ImageFiles
from avarc_cli.errors import CacheError
from avarc_cli.tokens.interchange import npy, numbered
from avarc_cli.tokens.interchange.codes import Codes
from avarc_cli.tokens.interchange.llamagen import parse

KIND = "RandAR's folders of codes"


def open_codes(folder: Path) -> Codes:
    """List the folders of all classes. Raises: CacheError for a file that is missing; OSError."""
    found = {number: numbered.list_numbers(folder / str(number)) for number in numbered.numbered_folders(folder)}
    labels = np.repeat(np.array(list(found), dtype=np.int64), [len(each) for each in found.values()])
    numbers = np.concatenate([np.empty(0, dtype=np.int64), *found.values()])
    if len(np.unique(numbers)) == len(numbers):
        order = np.argsort(numbers)
        labels, numbers = labels[order], numbers[order]
        _check_together(folder, labels, numbers)
    else:  # each class is numbered from 0
        _check_each(folder, found)
    files = tuple(f"{label}/{number}.npy" for label, number in zip(labels.tolist(), numbers.tolist(), strict=True))
    return Codes(
        kind=KIND,
        encoded=ImageFiles(folder.as_posix(), files),
        parse=parse,
        names=tuple(f"{folder.name}/{file}" for file in files),
        labels=labels,
        label_names=lambda row: f"{folder}/{labels[row]}",
    )


def _check_together(folder: Path, labels: np.ndarray, numbers: np.ndarray) -> None:
    """Raises: CacheError when a number is missing.

    Args:
        labels, numbers: (N,) of all files; numbers increase.
    """
    if (gap := numbered.first_gap(numbers)) is not None:
        after = f"{labels[gap]}/{numbers[gap]}.npy"
        why = f"the files of all classes are numbered together, from 0; the next one is {after}"
        fix = "add it; to import some of the classes, number the files of each from 0"
        raise CacheError(f"'{gap}.npy' is missing in the folders of '{folder}'", why, fix)


def _check_each(folder: Path, found: dict[int, np.ndarray]) -> None:
    """Raises: CacheError when the files of a class are not numbered from 0 without a gap."""
    for label, numbers in found.items():
        if (gap := numbered.first_gap(numbers)) is not None:
            missing = folder / str(label) / f"{gap}.npy"
            raise CacheError(f"'{missing}' is missing", f"'{missing.parent}' has files up to {numbers[-1]}.npy")


def write(folder: Path, labels: np.ndarray, blocks: Iterable[np.ndarray]) -> None:
    """Write the folders of all classes below an empty folder.

    Args:
        labels: (N,) class numbers, none unknown.
        blocks: tokens of consecutive images, (n, S, L).
    Raises: OSError.
    """
    for label in np.unique(labels).tolist():
        (folder / str(label)).mkdir()
    row = 0
    for block in blocks:
        for tokens_SL in block:
            (folder / str(labels[row]) / f"{row}.npy").write_bytes(npy.to_bytes(tokens_SL, np.int64))
            row += 1
