"""Arrays of all images: tokens (N, L) or (N, S, L) in FILE.npy with labels (N,) in FILE_labels.npy, or both in an npz.

An npz must be stored without compression (numpy.savez): one record at a time is read from it.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from avarc_cli.data.image_source import open_regular
from avarc_cli.errors import CacheError
from avarc_cli.tokens.form import TokenForm
from avarc_cli.tokens.interchange import npy
from avarc_cli.tokens.interchange.codes import MAX_RECORD, Codes, FileParts, NumberedNames, not_tokens
from avarc_cli.zip_check import check_zip

KIND = "an array of tokens"
TOKENS, LABELS = "tokens", "labels"  # names in an npz

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member; lengths of its name and extra field


@dataclass(frozen=True)
class _Stored:
    """An array in a file."""

    path: Path
    """Of the file."""
    name: str
    """For messages."""
    header: npy.NpyHeader
    """Its shape and type."""
    start: int
    """Where its first number is, in bytes."""


def open_npy(path: Path) -> Codes:
    """The tokens of a .npy, and the labels in the one beside it, if there is one. Raises: CacheError; OSError."""
    labels = labels_beside(path)
    return _open(_stored_npy(path), _stored_npy(labels) if labels.is_file() else None)


def open_npz(path: Path) -> Codes:
    """The arrays "tokens" and, if there is one, "labels" of an uncompressed npz. Raises: CacheError; OSError."""
    with open_regular(path) as file:
        try:
            check_zip(file)
            members = {info.filename: info for info in zipfile.ZipFile(file).infolist()}
        except ValueError as error:
            fix = "store it without compression: numpy.savez(file, tokens=..., labels=...)"
            raise CacheError(f"cannot import '{path}'", str(error), fix) from error
        if f"{TOKENS}.npy" not in members:
            has = ", ".join(members) or "nothing"
            fix = "save it with numpy.savez(file, tokens=..., labels=...)"
            raise CacheError(f"'{path}' has no array '{TOKENS}'", f"it has {has}", fix)
        tokens = _stored_member(file, path, members[f"{TOKENS}.npy"])
        labels = members.get(f"{LABELS}.npy")
        return _open(tokens, None if labels is None else _stored_member(file, path, labels))


def labels_beside(path: Path) -> Path:
    """The file with the labels of the tokens in a .npy."""
    return path.with_name(f"{path.stem}_{LABELS}.npy")


def _stored_npy(path: Path) -> _Stored:
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            header = npy.read_header(file)
            if header.total != size:
                raise ValueError(f"it has {size:,} bytes, an array of shape {header.shape} takes {header.total:,}")
        except ValueError as error:
            raise not_tokens(str(path), str(error)) from error
    return _Stored(path, str(path), header, header.size)


def _stored_member(file: BinaryIO, path: Path, info: zipfile.ZipInfo) -> _Stored:
    name = f"{path}:{info.filename}"
    try:
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed; numpy.savez stores arrays without compression")
        file.seek(info.header_offset)
        start = info.header_offset + _LOCAL_HEADER.size
        start += sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size)))
        file.seek(start)
        header = npy.read_header(file)
        if header.total != info.file_size:
            takes = f"an array of shape {header.shape} takes {header.total:,}"
            raise ValueError(f"it has {info.file_size:,} bytes, {takes}")
    except (ValueError, struct.error) as error:
        raise not_tokens(name, str(error)) from error
    return _Stored(path, name, header, start + header.size)


def _open(tokens: _Stored, labels: _Stored | None) -> Codes:
    """Raises: CacheError for arrays of other shapes."""
    shape = tokens.header.shape
    if len(shape) not in (2, 3) or not all(shape):
        raise not_tokens(tokens.name, f"its shape is {shape}, expected are (images, tokens) or (images, views, tokens)")
    count, record = shape[0], tokens.header.record
    if record > MAX_RECORD:
        raise not_tokens(tokens.name, f"an image has {record:,} bytes of tokens; its shape is {shape}")
    if labels is not None and labels.header.shape != (count,):
        raise not_tokens(labels.name, f"its shape is {labels.header.shape}, that of {tokens.name} is {shape}")
    rows = np.arange(count, dtype=np.int64)
    starts = tokens.start + rows * record
    return Codes(
        kind=KIND,
        encoded=FileParts(str(tokens.path), starts, np.full(count, record, dtype=np.int64), rows),
        parse=partial(_parse, dtype=tokens.header.dtype, length=shape[-1]),
        names=NumberedNames(f"{tokens.path.name}:", rows),
        labels=np.full(count, -1, dtype=np.int64) if labels is None else _read_labels(labels),
        label_names=lambda row: f"{labels.name}:{row}" if labels else "",
    )


def _parse(record: bytes, *, dtype: np.dtype[np.signedinteger], length: int) -> np.ndarray:
    """Raises: ValueError for a record that was cut short."""
    return np.frombuffer(record, dtype).reshape(-1, length)


def _read_labels(labels: _Stored) -> np.ndarray:
    with open_regular(labels.path) as file:
        file.seek(labels.start)
        data = file.read(labels.header.shape[0] * labels.header.dtype.itemsize)
    numbers = np.frombuffer(data, labels.header.dtype)
    if len(numbers) and int(numbers.max()) > np.iinfo(np.int64).max:
        raise not_tokens(labels.name, f"it has a label {numbers.max()}")
    return numbers.astype(np.int64)


def write_npy(file: BinaryIO, count: int, form: TokenForm, blocks: Iterable[np.ndarray]) -> None:
    """Write the tokens of N images, (N, S, L) uint16 or (N, S, L, Z) float32. Raises: OSError."""
    npy.write_blocks(file, (count, *form.shape), form.dtype, blocks)


def write_npz(file: BinaryIO, form: TokenForm, labels: np.ndarray, blocks: Iterable[np.ndarray]) -> None:
    """Write tokens as `write_npy`, and labels as int64 (N,), -1 where unknown. Raises: OSError."""
    with zipfile.ZipFile(file, "w") as archive:  # members get zip's first date: the same content is the same bytes
        with archive.open(zipfile.ZipInfo(f"{TOKENS}.npy"), "w", force_zip64=True) as member:
            npy.write_blocks(member, (len(labels), *form.shape), form.dtype, blocks)
        with archive.open(zipfile.ZipInfo(f"{LABELS}.npy"), "w") as member:
            npy.write_blocks(member, labels.shape, np.int64, [labels])
