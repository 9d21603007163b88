"""Writing a token cache: the same content gives the same bytes, whatever blocks it comes in."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import h5py
import numpy as np

from avarc_cli.storage import check_space, replacing
from avarc_cli.tokens.fingerprints import Fingerprints
from avarc_cli.tokens.header import CacheHeader, Partial

ROWS_PER_CHECKSUM = 256
"""Part of the format."""

NAMES_PER_BLOCK = 2**16
"""Names that are in memory as an array at once."""

Block: TypeAlias = "tuple[np.ndarray, np.ndarray | None]"
"""Consecutive images: tokens as their `TokenForm` says, latents before quantization (n, Z, h, w) float16 or None."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """What a cache holds of N images, except their tokens and latents."""

    header: CacheHeader
    """How it was made."""
    labels: np.ndarray
    """(N,) int32."""
    names: Sequence[str]
    """Of the N images, in order."""
    unreadable: Sequence[tuple[str, str]]
    """(name, reason) of the images that could not be read."""
    fingerprints: Fingerprints | None = None
    """Of the images, unreadable ones included, in order; None when the cache is not of one set of images."""
    partial: Partial | None = None
    """What a partial cache has; None for a complete one."""
    rows: np.ndarray | None = None
    """(N,) int64: in a partial cache, the indices of its images in the full set."""


class Checksums:
    """crc32 of every ROWS_PER_CHECKSUM rows of a dataset, which come in blocks of any length."""

    def __init__(self) -> None:
        self._finished: list[int] = []
        self._rows, self._crc = 0, 0

    def add(self, block: np.ndarray) -> None:
        """The next rows."""
        while len(block):
            now = block[: ROWS_PER_CHECKSUM - self._rows]
            self._crc = zlib.crc32(now.tobytes(), self._crc)
            self._rows += len(now)
            block = block[len(now) :]
            if self._rows == ROWS_PER_CHECKSUM:
                self._finished.append(self._crc)
                self._rows, self._crc = 0, 0

    def values(self) -> np.ndarray:
        """One checksum for each run of ROWS_PER_CHECKSUM rows, the last of which may be shorter, uint32."""
        return np.array(self._finished + [self._crc] * (self._rows > 0), dtype=np.uint32)


def write(path: Path, content: Content, blocks: Iterable[Block], *, size: int) -> None:
    """Write or replace a cache in one step.

    Args:
        blocks: the images, in order, in blocks of any length.
        size: bytes of all blocks, about.
    Raises: OSError, before the first block is asked for where there is not enough space.
    """
    longest = max(len(os.fsencode(name)) for name in content.names)
    fingerprints = content.fingerprints.to_arrays().values() if content.fingerprints else ()
    overhead = len(content.names) * (longest + 12) + 2**16  # names, labels and rows; header
    overhead += sum(values.nbytes for values in fingerprints)
    check_space(path, size + overhead)  # asked before, since HDF5 answers with tracebacks
    with replacing(path) as temporary:
        try:
            # v108: older layouts have no checksums of their structure, and HDF5 hangs on some corrupt files of theirs.
            with h5py.File(temporary, "w", libver=("v108", "v108")) as file:
                _write(file, content, blocks)
        except RuntimeError as error:  # what h5py makes of a full disk when it closes the file
            raise OSError(str(error)) from error


def _write(file: h5py.File, content: Content, blocks: Iterable[Block]) -> None:
    attributes = {"avarc": content.header.to_json(), "unreadable": json.dumps(content.unreadable)}
    if content.partial is not None:
        attributes["share"] = content.partial.to_json()
    for name, text in attributes.items():
        file.attrs.create(name, text.encode(), dtype=h5py.string_dtype("utf-8", len(text)))
    count = len(content.names)
    _write_dataset(file, "labels", np.int32, count, [content.labels.astype(np.int32)])
    # Of fixed length: text of varying length would go to a heap, which has no checksums either.
    width = max(len(_encode(name)) for name in content.names)
    _write_dataset(file, "paths", h5py.string_dtype("utf-8", width), count, _name_blocks(content.names, width))
    if content.rows is not None:
        _write_dataset(file, "rows", np.int64, count, [content.rows])
    for name, values in content.fingerprints.to_arrays().items() if content.fingerprints else ():
        _write_dataset(file, name, values.dtype, len(values), [values], values.shape[1:])
    _write_images(file, content.header, count, blocks)


def _write_dataset(
    file: h5py.File,
    name: str,
    dtype: object,
    count: int,
    blocks: Iterable[np.ndarray],
    shape: tuple[int, ...] = (),
) -> None:
    dataset, checksums, start = file.create_dataset(name, (count, *shape), dtype), Checksums(), 0
    for block in blocks:
        dataset[start : start + len(block)] = block
        checksums.add(block)
        start += len(block)
    dataset.attrs["crc32"] = checksums.values()


def _write_images(file: h5py.File, header: CacheHeader, count: int, blocks: Iterable[Block]) -> None:
    form = header.form
    file.create_dataset(form.dataset, (count, *form.shape), form.dtype)
    checksums, start = {form.dataset: Checksums()}, 0
    for tokens, latents in blocks:
        stop = start + len(tokens)
        block = {form.dataset: tokens}
        if latents is not None and len(latents):
            if "latents" not in checksums:
                file.create_dataset("latents", (count, *latents.shape[1:]), np.float16)
                checksums["latents"] = Checksums()
            block["latents"] = latents
        for name, values in block.items():
            file[name][start:stop] = values
            checksums[name].add(values)
        start = stop
    for name, sums in checksums.items():
        file[name].attrs["crc32"] = sums.values()


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _name_blocks(names: Sequence[str], width: int) -> Iterator[np.ndarray]:
    for start in range(0, len(names), NAMES_PER_BLOCK):
        block = [_encode(name) for name in names[start : start + NAMES_PER_BLOCK]]
        yield np.array(block, dtype=h5py.string_dtype("utf-8", width))
