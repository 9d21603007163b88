"""How many bytes the compressed buffers of an Arrow stream or file claim to take, before pyarrow makes room for them.

pyarrow does not tell, so their headers are read here: flatbuffers, which pyarrow has verified. The layout is that of
https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc, Message.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

FILE_MAGIC = b"ARROW1\0\0"  # a file is this, a stream, and a footer
HEADER_TYPE, HEADER = 1, 2  # fields of Message
DICTIONARY_BATCH, RECORD_BATCH = 2, 3  # types of its header
DICTIONARY_DATA = 1  # field of DictionaryBatch: a RecordBatch
BUFFERS, COMPRESSION = 2, 3  # fields of RecordBatch
BUFFER_SIZE = 16  # bytes: offset and length in the body


def claimed_bytes(mapped: Any) -> int:
    """The sum over all compressed buffers of a pyarrow file, whose position this changes.

    Raises: pyarrow.ArrowInvalid, ValueError for a corrupt one.
    """
    try:
        return sum(length for message in _messages(mapped) for length in _uncompressed_lengths(message))
    except struct.error:
        raise ValueError("a buffer lies outside of its message") from None


def _messages(mapped: Any) -> Iterator[Any]:
    import pyarrow as pa

    mapped.seek(len(FILE_MAGIC) if mapped.read(len(FILE_MAGIC)) == FILE_MAGIC else 0)
    while True:
        try:
            yield pa.ipc.read_message(mapped)
        except EOFError:  # the end-of-stream mark, or the end of the file
            return


def _uncompressed_lengths(message: Any) -> Iterator[int]:
    data = message.metadata.to_pybytes()
    root = _follow(data, 0)
    kind, batch = _field(data, root, HEADER_TYPE), _field(data, root, HEADER)
    batch = _follow(data, batch)
    if kind and data[kind] == DICTIONARY_BATCH:
        batch = _follow(data, _field(data, batch, DICTIONARY_DATA))
    elif not kind or data[kind] != RECORD_BATCH:
        return
    buffers = _field(data, batch, BUFFERS)
    if not buffers or not _field(data, batch, COMPRESSION):
        return
    start = _follow(data, buffers)
    (count,) = struct.unpack_from("<I", data, start)
    for number in range(count):
        offset, length = struct.unpack_from("<qq", data, start + 4 + BUFFER_SIZE * number)
        if length:  # its first eight bytes are its length without compression, -1 if it has none
            yield max(0, *struct.unpack_from("<q", message.body, offset))


def _follow(data: bytes, position: int) -> int:
    """Where the offset at this position leads."""
    return position + int(struct.unpack_from("<I", data, position)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Position of a field of a table; 0 if it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    entry = 4 + 2 * number
    offset = int(struct.unpack_from("<H", data, vtable + entry)[0]) if entry < size else 0
    return table + offset if offset else 0
