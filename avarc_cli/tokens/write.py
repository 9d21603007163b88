"""Writing a token cache: the same content gives the same bytes, in whatever blocks it comes."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from avarc_cli.storage import check_space, replacing
from avarc_cli.tokens.header import CacheHeader, Share

CHECKED_ROWS = 256  # rows under one checksum
NAMES_AT_ONCE = 2**16
Block = tuple[np.ndarray, "np.ndarray | None"]  # tokens (n, S, L) uint16 and latents (n, Z, h, w) float16


class Checksums:
    """crc32 of every CHECKED_ROWS rows of a dataset, which come in blocks of any length."""

    def __init__(self) -> None:
        self._finished: list[int] = []
        self._rows, self._crc = 0, 0

    def add(self, block: np.ndarray) -> None:
        """The next rows."""
        while len(block):
            now = block[: CHECKED_ROWS - self._rows]
            self._crc = zlib.crc32(now.tobytes(), self._crc)
            self._rows += len(now)
            block = block[len(now) :]
            if self._rows == CHECKED_ROWS:
                self._finished.append(self._crc)
                self._rows, self._crc = 0, 0

    def values(self) -> np.ndarray:
        """One number for each run of CHECKED_ROWS rows, the last of which may be shorter, uint32."""
        return np.array(self._finished + [self._crc] * (self._rows > 0), dtype=np.uint32)


def write_whole_cache(
    path: Path,
    header: CacheHeader,
    *,
    labels: np.ndarray,
    names: Sequence[str],
    blocks: Iterable[Block],
    unreadable: Sequence[tuple[str, str]],
    size: int,
    share: Share | None = None,
    rows: np.ndarray | None = None,
) -> None:
    """Write a cache under a temporary name on the same disk, then give it its own, whole; the arguments are `write`'s.

    size: bytes of all blocks, about.
    Raises: OSError, before anything is computed where the disk has not enough space.
    """
    # Asked before, since HDF5 answers with tracebacks.
    check_space(path, size + len(names) * (12 + max(len(os.fsencode(name)) for name in names)) + 2**16)
    with replacing(path) as temporary:
        write(
            temporary, header, labels=labels, names=names, blocks=blocks, unreadable=unreadable, share=share, rows=rows
        )


def write(
    path: Path,
    header: CacheHeader,
    *,
    labels: np.ndarray,
    names: Sequence[str],
    blocks: Iterable[Block],
    unreadable: Sequence[tuple[str, str]],
    share: Share | None = None,
    rows: np.ndarray | None = None,
) -> None:
    """Write a cache file; the same arguments give the same bytes.

    Args:
        labels, names: of the N images, in order.
        blocks: their tokens (n, S, L) uint16 and latents (n, Z, h, w) float16 or None, any number of rows at a time.
        unreadable: (name, reason) of the images left out.
        share, rows: for a part of a cache, which one, and the indices of its images in the full set, (N,) int64.

    Raises: OSError.
    """
    attributes = {"avarc": header.to_json(), "unreadable": json.dumps(unreadable)}
    if share is not None:
        attributes["share"] = share.to_json()
    try:
        # v108: older layouts have no checksums of their structure, and HDF5 hangs on some damaged files of theirs.
        with h5py.File(path, "w", libver=("v108", "v108")) as file:
            for name, text in attributes.items():
                file.attrs.create(name, text.encode(), dtype=h5py.string_dtype("utf-8", len(text)))
            _write_dataset(file, "labels", np.int32, len(names), [labels.astype(np.int32)])
            # Of fixed length: text of varying length would go to a heap, which has no checksums either.
            width = max(len(_encoded(name)) for name in names)
            _write_dataset(file, "paths", h5py.string_dtype("utf-8", width), len(names), _encode(names, width))
            if rows is not None:
                _write_dataset(file, "rows", np.int64, len(names), [rows])
            _write_blocks(file, header, len(names), blocks)
    except RuntimeError as error:  # what h5py makes of a full disk when it closes the file
        raise OSError(str(error)) from error


def _write_dataset(file: h5py.File, name: str, dtype: object, count: int, blocks: Iterable[np.ndarray]) -> None:
    dataset, checksums, start = file.create_dataset(name, (count,), dtype), Checksums(), 0
    for block in blocks:
        dataset[start : start + len(block)] = block
        checksums.add(block)
        start += len(block)
    dataset.attrs["crc32"] = checksums.values()


def _write_blocks(file: h5py.File, header: CacheHeader, count: int, blocks: Iterable[Block]) -> None:
    file.create_dataset("tokens", (count, header.samples, header.num_tokens), np.uint16)
    checksums, start = {"tokens": Checksums()}, 0
    for tokens, latents in blocks:
        stop = start + len(tokens)
        block = {"tokens": tokens}
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


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _encode(names: Sequence[str], width: int) -> Iterator[np.ndarray]:
    for start in range(0, len(names), NAMES_AT_ONCE):
        block = [_encoded(name) for name in names[start : start + NAMES_AT_ONCE]]
        yield np.array(block, dtype=h5py.string_dtype("utf-8", width))
