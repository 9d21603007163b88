"""LlamaGen's folders: imagenet256_codes/0.npy, ... and imagenet256_labels/0.npy, ...

A file of codes holds int64 (1, S, L), one of labels int64 (1,), with -1 for an unknown class.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from avarc_cli.data.image_source import ImageFiles
from avarc_cli.errors import CacheError, UnreadableImage
from avarc_cli.tokens.interchange import npy, numbered
from avarc_cli.tokens.interchange.codes import Codes, NumberedNames, not_tokens
from avarc_cli.words import counted

KIND = "LlamaGen's folders of codes and labels"
CODES, LABELS = "_codes", "_labels"  # what the folders' names end in


def open_codes(folder: Path) -> Codes:
    """List a folder of codes and read the labels beside it.

    Raises: CacheError for a file that is missing, unreadable, or no label; OSError.
    """
    labels = folder.with_name(folder.name.removesuffix(CODES) + LABELS)
    if not folder.name.endswith(CODES) or not labels.is_dir():
        raise CacheError(
            f"'{folder}' has no labels",
            f"there is no folder '{labels}'" if folder.name.endswith(CODES) else f"its name does not end in {CODES}",
            f"LlamaGen writes NAME{CODES} and NAME{LABELS} side by side",
        )
    numbers, with_label = numbered.list_numbers(folder), numbered.list_numbers(labels)
    for place, found in ((folder, numbers), (labels, with_label)):
        if (gap := numbered.first_gap(found)) is not None:
            raise CacheError(f"'{place / f'{gap}.npy'}' is missing", f"'{place}' has files up to {found[-1]}.npy")
    if len(numbers) != len(with_label):
        shorter = labels if len(numbers) > len(with_label) else folder
        first = shorter / f"{min(len(numbers), len(with_label))}.npy"
        why = f"{counted(len(numbers), 'file')} of codes, {len(with_label):,} of labels"
        raise CacheError(f"'{first}' is missing", why)
    files = NumberedNames("", numbers, numbered.SUFFIX)
    return Codes(
        kind=KIND,
        encoded=ImageFiles(folder.as_posix(), files),
        parse=parse,
        names=NumberedNames(f"{folder.name}/", numbers, numbered.SUFFIX),
        labels=_read_labels(ImageFiles(labels.as_posix(), files)),
        label_names=lambda row: f"{labels}/{row}.npy",
    )


def parse(record: bytes) -> np.ndarray:
    """Tokens (S, L) of an array file (1, S, L), (S, L) or (L,). Raises: ValueError."""
    tokens = npy.parse(record)
    if tokens.ndim == 3 and len(tokens) == 1:
        tokens = tokens[0]
    if tokens.ndim not in (1, 2) or not tokens.size:
        raise ValueError(f"its array has the shape {npy.parse(record).shape}, expected is (views, tokens)")
    return tokens[None] if tokens.ndim == 1 else tokens


def _read_labels(files: ImageFiles) -> np.ndarray:
    labels = np.empty(len(files), dtype=np.int64)
    for row in range(len(files)):
        try:
            with files.open(row) as file:
                array = npy.parse(file.read(npy.MAX_HEADER + 16))
            if array.size != 1:
                raise ValueError(f"it holds {array.size} numbers, a label is one")
            labels[row] = int(array.reshape(-1)[0])
        except (OSError, ValueError, OverflowError, UnreadableImage) as error:
            reason = error.why if isinstance(error, UnreadableImage) else str(error)
            raise not_tokens(files.location(row), reason) from error
    return labels


def write(folder: Path, image_size: int, labels: np.ndarray, blocks: Iterable[np.ndarray]) -> None:
    """Write both folders below an empty folder.

    Args:
        image_size: pixels a side.
        labels: (N,) class numbers, -1 where unknown.
        blocks: tokens of consecutive images, (n, S, L).
    Raises: OSError.
    """
    codes_folder, labels_folder = (folder / f"imagenet{image_size}{end}" for end in (CODES, LABELS))
    codes_folder.mkdir()
    labels_folder.mkdir()
    row = 0
    for block in blocks:
        for tokens_SL in block:
            (codes_folder / f"{row}.npy").write_bytes(npy.to_bytes(tokens_SL[None], np.int64))
            (labels_folder / f"{row}.npy").write_bytes(npy.to_bytes(labels[row : row + 1], np.int64))
            row += 1
