"""Files that are whole or absent, and a lock that dies with its process."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avarc_cli.errors import AvarcError

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


def lock_of(path: Path) -> Path:
    """The file that is locked while the path is being written."""
    return path.with_name(path.name + ".lock")


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold `PATH.lock`, so that no second process writes to the same place; gone afterwards.

    Raises: AvarcError at once when another process holds it; OSError when the folder cannot be written to.
    """
    lock = lock_of(path)
    descriptor = _acquire(lock, path)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: nobody else can have acquired it
        os.close(descriptor)


def _acquire(lock: Path, path: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # lockf, not flock: forked workers do not inherit it, so those that outlive a killed parent block nobody.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                raise
            raise AvarcError(
                f"'{path}' is being written by another process",
                f"it holds the lock '{lock}'",
                "wait for it to end, or write to another file",
            ) from None
        os.close(descriptor)  # the holder removed the file between our opening and locking it: try the new one
