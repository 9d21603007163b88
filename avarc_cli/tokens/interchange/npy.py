"""numpy's array files, without pickles: the header, and arrays of which one record at a time is read or written."""

from __future__ import annotations

import io
import math
import struct
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import IO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
"""Bytes of a header that is read; numpy's own limit."""
_INVALID = (ValueError, TypeError, LookupError, SyntaxError, OverflowError, RecursionError, MemoryError)
_READERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


@dataclass(frozen=True)
class NpyHeader:
    """What an array file says about its array, which follows in C order."""

    shape: tuple[int, ...]
    """Of the array."""
    dtype: np.dtype[np.signedinteger]
    """A type of whole numbers."""
    size: int
    """Bytes of the header itself."""

    @property
    def record(self) -> int:
        """Bytes of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def total(self) -> int:
        """Bytes of header and array."""
        return self.size + math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> NpyHeader:
    """The header at the file's position, which moves behind it.

    Raises: ValueError unless it is one of an array of whole numbers in C order; OSError.
    """
    start = file.read(len(MAGIC) + 2)
    width = {1: 2, 2: 4}.get(start[-2] if len(start) == len(MAGIC) + 2 else 0)
    if not start.startswith(MAGIC) or width is None:
        raise ValueError("it is not an array file of numpy (.npy)")
    length = file.read(width)
    if len(length) == width:
        count = struct.unpack("<H" if width == 2 else "<I", length)[0]
        if count <= MAX_HEADER:
            return _parse(start + length + file.read(count))
    raise ValueError("its header is cut short, or too long")


def parse(data: bytes) -> np.ndarray:
    """The array of a whole file. Raises: ValueError unless it is one of whole numbers, complete, in C order."""
    header = read_header(io.BytesIO(data[: MAX_HEADER + 16]))
    if header.total != len(data):
        raise ValueError(f"it has {len(data):,} bytes, an array of shape {header.shape} takes {header.total:,}")
    return np.frombuffer(data, header.dtype, offset=header.size).reshape(header.shape)


@lru_cache(maxsize=64)  # a million files of one program have the same header
def _parse(header: bytes) -> NpyHeader:
    stream = io.BytesIO(header)
    try:
        version = npy_format.read_magic(stream)
        shape, is_fortran, dtype = _READERS[version](stream)
    except (*_INVALID, tokenize.TokenError) as error:
        raise ValueError(f"its header cannot be read: {str(error).partition(chr(10))[0]}") from None
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"its header claims the shape {shape}")
    if dtype == np.float16:
        raise ValueError("its numbers are of type float16, which cannot hold all codes above 2048; save int32")
    if dtype.kind not in "iu":
        raise ValueError(f"its numbers are of type {dtype}, not whole numbers")
    if is_fortran and len(shape) > 1:
        raise ValueError("it is stored column by column (Fortran order); save numpy.ascontiguousarray of it")
    return NpyHeader(tuple(shape), dtype, len(header))


def write_blocks(file: IO[bytes], shape: tuple[int, ...], dtype: DTypeLike, blocks: Iterable[np.ndarray]) -> None:
    """Write an array whose first axis comes in blocks. Raises: OSError."""
    described = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(file, described)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype=np.dtype(dtype).newbyteorder("<")).tobytes())


def to_bytes(array: np.ndarray, dtype: DTypeLike) -> bytes:
    """An array file."""
    buffer = io.BytesIO()
    write_blocks(buffer, array.shape, dtype, [array])
    return buffer.getvalue()
