"""Files that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

TEMPORARY = ".tmp"  # suffix of what is not finished


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that, whenever the process dies, it is either complete or not there (or as it was before).

    Raises: OSError.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk every byte counts
        raise


def check_space(path: Path, size: int) -> None:
    """Raises: OSError when a file of so many bytes cannot be written there (full disk, quota, limit)."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    finally:
        path.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until what was written to the file is on the disk. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
