"""Locks on work in progress. They end with their process, on one machine or over a network file system.

A path that is being written has a lock file beside it, `PATH.lock`, of which ranges of bytes are locked: byte n stands
for chunk n of the work, and one byte far behind them, the exclusive lock, for starting and finishing the work. So
processes can compute different chunks at once, no two compute the same one, and one at a time starts or finishes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avarc_cli.errors import AvarcError
from avarc_cli.storage import beside, remove_leftovers_of

EXCLUSIVE = 2**40
"""The byte of the exclusive lock, far beyond any number of chunks."""

ALL_CHUNKS = range(EXCLUSIVE)


def lock_file(path: Path) -> Path:
    """The file that is locked while `path` is being written."""
    return beside(path, ".lock")


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Be the only process that writes to `path`. What killed ones left half-written is deleted, at the end the lock.

    Raises: AvarcError at once when another process holds the lock, or something else has the lock file's name;
        OSError when the folder cannot be written to.
    """
    with chunk_lock(path, wait=False) as lock:
        lock.claim(ALL_CHUNKS)
        remove_leftovers_of(path)
        yield


@contextmanager
def chunk_lock(path: Path, *, wait: bool) -> Iterator[ChunkLock]:
    """Be one of the processes that write to `path`, at first with the exclusive lock.

    The last of them deletes the lock file.

    Args:
        wait: block while another process holds the exclusive lock, which takes seconds. Otherwise that is an error.
    Raises: AvarcError when another process holds the exclusive lock, or something else has the lock file's name;
        OSError when the folder cannot be written to.
    """
    lock = ChunkLock(path, _open_and_lock(path, wait=wait))
    try:
        yield lock
    finally:
        lock.close()


class ChunkLock:
    """What one process holds of the locks on a path: chunks that it claimed, and at times the exclusive lock."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def claim(self, chunks: range) -> None:
        """Claim these chunks until the end. Raises: AvarcError when another process has claimed one of them."""
        if len(chunks) and not _try_lock(self._descriptor, len(chunks), chunks.start):
            raise _is_locked(self._path)

    def release_all_but(self, chunks: range) -> None:
        """Let other processes claim all chunks but these."""
        for others in (range(chunks.start), range(chunks.stop, EXCLUSIVE)):
            if len(others):  # a length of 0 would mean all bytes to the end
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, len(others), others.start)

    def release_exclusive(self) -> None:
        """Let other processes start, and claim other chunks."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, EXCLUSIVE)

    def acquire_exclusive(self) -> None:
        """Keep other processes from starting or finishing; blocks while another one does."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, EXCLUSIVE)

    def is_sole_holder(self) -> bool:
        """Whether no other process has claimed a chunk. If so, this one has claimed all of them from now on."""
        return _try_lock(self._descriptor, 0, 0)

    def close(self) -> None:
        """Release everything."""
        if self.is_sole_holder():
            lock_file(self._path).unlink(missing_ok=True)  # while it is locked: no other process can have acquired it
        os.close(self._descriptor)  # unlocks everything in one step: of two that close, one is the sole holder


def _open_and_lock(path: Path, *, wait: bool) -> int:
    lock = lock_file(path)
    while True:
        descriptor = _open(lock)
        try:
            # lockf, not flock: forked workers do not inherit it, so workers that outlive a killed parent block nothing.
            if wait:
                fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, EXCLUSIVE)
            elif not _try_lock(descriptor, 1, EXCLUSIVE):
                raise _is_locked(path)
            if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder deleted the file after we opened it and before we locked it: use the new one


def _open(lock: Path) -> int:
    """Open or create a lock file. Raises: AvarcError for anything that is not one: lock files are empty; OSError."""
    foreign = AvarcError(f"'{lock}' exists, and is not a lock file of avarc's", fix="move it, or write to another file")
    try:
        # O_NOFOLLOW: a link may lead to any file.
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise foreign from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        os.close(descriptor)
        raise foreign
    return descriptor


def _try_lock(descriptor: int, count: int, start: int) -> bool:
    """Lock `count` bytes (0: to the end), unless another process holds one of them. Raises: OSError."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, start)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            return False
        raise
    return True


def _is_locked(path: Path) -> AvarcError:
    return AvarcError(
        f"'{path}' is being written by another process",
        f"it holds the lock '{lock_file(path)}'",
        "wait for it to end, or write to another file",
    )
