"""Reading tar files in place: where each member lies, without unpacking, and without tarfile's memory for each.

POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU headers, as https://www.gnu.org/software/tar/manual has them.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
FILES = (b"0", b"\0", b"7")
LONG_NAME, PAX = b"L", b"x"
ADLER = 65_521
MAX_SIZE = 10**18  # bytes of a member
MAX_EXTENSION = 1 << 20  # bytes of a long name or of pax records; more is damage


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


class DamagedTar(Exception):
    """What is no tar header where one should be, with its place."""


class Scan:
    """The members of a tar file, in order; `complete` says afterwards whether the archive had its end mark.

    Raises: DamagedTar, OSError while iterating.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.complete = False

    def __iter__(self) -> Iterator[Member]:
        with open(self.path, "rb", buffering=0) as file:
            self._fd, self._size = file.fileno(), os.fstat(file.fileno()).st_size
            yield from self._members()

    def _members(self) -> Iterator[Member]:
        position = 0
        long_name, pax = "", dict[str, str]()
        while position < self._size:
            block = os.pread(self._fd, BLOCK, position)
            if block.count(0) == BLOCK:
                self.complete = True
                return
            if len(block) < BLOCK:  # cut within a header: what came before is whole
                return
            size, kind = self._check(block, position), block[156:157]
            data = position + BLOCK
            if kind in (LONG_NAME, PAX):
                text = self._extension(data, size)
                long_name = text.split(b"\0")[0].decode("utf-8", "surrogateescape") if kind == LONG_NAME else long_name
                pax = _records(text, position) if kind == PAX else pax
            else:
                size = int(pax.get("size", size))
                name = pax.get("path") or long_name or _name(block)
                if kind in FILES and not name.endswith("/"):
                    yield Member(name, data, size)
                long_name, pax = "", {}
            position = data + -(-size // BLOCK) * BLOCK

    def _check(self, block: bytes, position: int) -> int:
        """The member's size. Raises: DamagedTar when the block is no header."""
        try:
            expected = int(block[148:156].strip(b" \0"), 8)
            size = _number(block[124:136])
        except ValueError:
            raise DamagedTar(f"there is no tar header at byte {position:,}") from None
        if (_sum(block) - sum(block[148:156]) + 8 * 0x20 - expected) % ADLER or size > MAX_SIZE:
            raise DamagedTar(f"the tar header at byte {position:,} is damaged")
        return size

    def _extension(self, position: int, size: int) -> bytes:
        if size > MAX_EXTENSION:
            raise DamagedTar(f"the tar header at byte {position:,} is damaged")
        return os.pread(self._fd, size, position)


def _sum(block: bytes) -> int:
    """The sum of the bytes, modulo ADLER: what Adler-32 keeps in its lower half, at a tenth of the time of sum()."""
    return (zlib.adler32(block) & 0xFFFF) - 1


def _number(field: bytes) -> int:
    """Octal digits, or, with the first bit set, a binary number (GNU, for more than 8 GB)."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _name(block: bytes) -> str:
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    posix = block[257:263] == b"ustar\0"  # GNU's own format has other things in the place of the prefix
    return (prefix + b"/" + name if posix and prefix else name).decode("utf-8", "surrogateescape")


def _records(text: bytes, position: int) -> dict[str, str]:
    """pax: records of "length key=value\\n"."""
    found = {}
    while text:
        length, _, _ = text.partition(b" ")
        if not (length.isdigit() and len(length) < 8 and len(length) + 1 < int(length) <= len(text)):
            raise DamagedTar(f"the pax header at byte {position:,} is damaged")
        key, _, value = text[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        text = text[int(length) :]
    if not re.fullmatch(r"[0-9]{1,18}", found.get("size", "0")):
        raise DamagedTar(f"the pax header at byte {position:,} is damaged")
    return found
