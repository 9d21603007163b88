"""Whether a zip archive holds what was written into it; to be asked before anything in it is used.

Archives of avarc, numpy's and torch's are stored uncompressed, so their content never takes more bytes than the file.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

INVALID = (OSError, EOFError, ValueError, LookupError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
"""What `zipfile` raises on corrupt archives; RuntimeError for one that claims to be encrypted, or compressed in a way
that it does not know."""


def check_zip(file: Path | BinaryIO) -> None:
    """Read every member of an archive, without keeping it in memory.

    Raises: ValueError unless it is a zip archive whose members have the right checksums, different names, and together
        no more bytes than the file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            assert archive.fp is not None
            size = archive.fp.seek(0, 2)
            members = archive.infolist()
            claimed = sum(member.file_size for member in members)
            if claimed > size:
                raise ValueError(f"its members claim {claimed:,} bytes, the file has {size:,}")
            if len({member.filename for member in members}) < len(members):
                raise ValueError("two of its members have the same name")
            corrupt = archive.testzip()
    except INVALID as error:
        raise ValueError(str(error) or "it is not a complete zip archive") from error
    if corrupt is not None:
        raise ValueError(f"the checksum of its member '{corrupt}' is wrong")


@contextmanager
def open_npz(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an npz file without pickles, verified first; each is read when it is looked up.

    Raises: ValueError, OSError, and when an array is looked up, one of INVALID or numpy's errors for a wrong header.
    """
    with path.open("rb") as stream:
        check_zip(stream)
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as arrays:
            yield arrays
