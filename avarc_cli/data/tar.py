"""The members of a tar file and their byte offsets, without unpacking it and without tarfile's memory per member.

Reads POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU headers: https://www.gnu.org/software/tar/manual.
"""

from __future__ import annotations

import os
import posixpath
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK_SIZE = 512  # bytes
REGULAR_FILE = (b"0", b"\0", b"7")  # type flags
HARD_LINK, SYMBOLIC_LINK = b"1", b"2"
LONG_NAME, LONG_LINK, PAX = b"L", b"K", b"x"
ADLER_MODULUS = 65_521
PIECE = 1 << 20  # bytes read at once
MAX_SIZE = 10**18  # bytes of a member; a larger number means that the header is corrupt
PAX_LENGTH_DIGITS = 7  # of a record
MAX_EXTENSION = 1 << 20  # bytes of a long name or of pax records; likewise


@dataclass(frozen=True, slots=True)  # there may be a million
class Member:
    """A file in a tar, or a link to one."""

    name: str  # path in the archive
    offset: int  # bytes, of its content
    size: int  # bytes
    link: str = ""  # the path that a hard or symbolic link leads to; "" for a file


class CorruptTar(Exception):
    """There is no valid header at a position that must have one."""


class TarScanner:
    """Iterates over the files and links in a tar, in order.

    Afterwards, `complete` says whether the archive has its end-of-archive mark, and `continues` whether data follow it.

    Raises: CorruptTar and OSError while iterating.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.complete = self.continues = False

    def __iter__(self) -> Iterator[Member]:
        with open(self.path, "rb", buffering=0) as file:
            self._fd, self._size = file.fileno(), os.fstat(file.fileno()).st_size
            yield from self._members()

    def _members(self) -> Iterator[Member]:
        position = 0
        long_name, long_link, pax = "", "", dict[str, str]()
        while position < self._size:
            block = os.pread(self._fd, BLOCK_SIZE, position)
            if block.count(0) == BLOCK_SIZE:
                self.complete, self.continues = True, self._has_data(position)
                return
            if len(block) < BLOCK_SIZE:  # truncated within a header: everything before it is intact
                return
            size, kind = self._check_header(block, position), block[156:157]
            data = position + BLOCK_SIZE
            if kind in (LONG_NAME, LONG_LINK, PAX):
                text = self._read_extension(data, size)
                if kind == PAX:
                    pax = _pax_records(text, position)
                elif kind == LONG_NAME:
                    long_name = _text(text)
                else:
                    long_link = _text(text)
            else:
                size = int(pax.get("size", size))
                name = pax.get("path") or long_name or _name(block)
                if kind in REGULAR_FILE and not name.endswith("/"):
                    yield Member(name, data, size)
                elif kind in (HARD_LINK, SYMBOLIC_LINK):
                    size = 0  # some programs store that of the target
                    target = pax.get("linkpath") or long_link or _text(block[157:257])
                    around = posixpath.dirname(name) if kind == SYMBOLIC_LINK else ""
                    yield Member(name, data, 0, posixpath.normpath(posixpath.join(around, target)))
                long_name, long_link, pax = "", "", {}
            position = data + -(-size // BLOCK_SIZE) * BLOCK_SIZE

    def _check_header(self, block: bytes, position: int) -> int:
        """The size of the member in bytes. Raises: CorruptTar if the block is not a header."""
        try:
            expected = _octal(block[148:156])
            size = _number(block[124:136])
        except ValueError:
            raise CorruptTar(f"there is no tar header at byte {position:,}") from None
        # The checksum is the sum of all bytes, with its own eight counted as spaces.
        if (_sum(block) - sum(block[148:156]) + 8 * 0x20 - expected) % ADLER_MODULUS or size > MAX_SIZE:
            raise _corrupt_header(position)
        return size

    def _has_data(self, position: int) -> bool:
        """Whether there is anything but zeros from this position on."""
        pieces = (os.pread(self._fd, PIECE, at) for at in range(position, self._size, PIECE))
        return any(piece.count(0) < len(piece) for piece in pieces)

    def _read_extension(self, position: int, size: int) -> bytes:
        if size > MAX_EXTENSION:
            raise _corrupt_header(position)
        return os.pread(self._fd, size, position)


def _corrupt_header(position: int) -> CorruptTar:
    return CorruptTar(f"the tar header at byte {position:,} is corrupt")


def _sum(block: bytes) -> int:
    """The sum of the bytes modulo ADLER_MODULUS: the lower half of Adler-32, at a tenth of the time of sum()."""
    return (zlib.adler32(block) & 0xFFFF) - 1


def _number(field: bytes) -> int:
    """Octal digits or, if the first bit is set, a binary number (GNU's extension for sizes from 8 GB).

    Raises: ValueError for anything else. Negative binary numbers, which begin with 0xff, are far above MAX_SIZE.
    """
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return _octal(field)


def _octal(field: bytes) -> int:
    """Octal digits between spaces and zero bytes, none for 0. Raises: ValueError: int() alone takes -7, 0o7 and 1_0."""
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise ValueError(f"{field!r} is no octal number")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(block: bytes) -> str:
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    is_posix = block[257:263] == b"ustar\0"  # GNU's own format stores other things in the bytes of the prefix
    return (prefix + b"/" + name if is_posix and prefix else name).decode("utf-8", "surrogateescape")


def _pax_records(text: bytes, position: int) -> dict[str, str]:
    """Parse records of "length key=value\\n"."""
    records, start = {}, 0
    while start < len(text):
        length = text[start : start + PAX_LENGTH_DIGITS + 1].partition(b" ")[0]
        if not (length.isdigit() and len(length) <= PAX_LENGTH_DIGITS):
            raise _corrupt_pax(position)
        begin, end = start + len(length) + 1, start + int(length)
        if not begin < end <= len(text):
            raise _corrupt_pax(position)
        key, _, value = text[begin : end - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        start = end
    if not re.fullmatch(r"[0-9]{1,18}", records.get("size", "0")):
        raise _corrupt_pax(position)
    return records


def _corrupt_pax(position: int) -> CorruptTar:
    return CorruptTar(f"the pax header at byte {position:,} is corrupt")
