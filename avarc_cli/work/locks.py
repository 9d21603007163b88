"""Who may write where: locks that die with their process, on one machine or over a network file system.

A place that is written to has a lock file beside it, `PATH.lock`. It is locked byte by byte: byte n stands for unit n
of the work, and one byte far behind them for the place as a whole. So several processes can work on different units at
once, nobody on the same ones, and whoever opens or closes the place does so alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avarc_cli.errors import AvarcError

WHOLE_PLACE = 2**40  # a byte no unit stands for


def lock_of(path: Path) -> Path:
    """The file that is locked while the path is being written."""
    return path.with_name(path.name + ".lock")


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold `PATH.lock` as a whole, so that no second process writes to the same place; gone afterwards.

    Raises: AvarcError at once when another process holds it; OSError when the folder cannot be written to.
    """
    with one_of_the_writers(path, wait=False) as turn:
        turn.claim(range(WHOLE_PLACE))
        yield


@contextmanager
def one_of_the_writers(path: Path, *, wait: bool) -> Iterator[Turn]:
    """A turn at the place, which nobody else opens or closes meanwhile; the lock file goes with the last writer.

    wait: for whoever opens or closes it now, which takes seconds. Otherwise:

    Raises: AvarcError at once when another process holds it; OSError when the folder cannot be written to.
    """
    turn = Turn(path, _acquire(path, wait=wait))
    try:
        yield turn
    finally:
        turn.end()


class Turn:
    """The right to open or close a place now, and to work on the units that were claimed."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def claim(self, units: range) -> None:
        """Take these units. Raises: AvarcError when another process is at one of them."""
        if len(units) and not _try(self._descriptor, len(units), units.start):
            raise _held(self._path)

    def let_others_in(self) -> None:
        """Others may open the place from now on, and claim other units."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, WHOLE_PLACE)

    def come_back(self) -> None:
        """Once more nobody else opens or closes the place; waits for whoever is at it."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, WHOLE_PLACE)

    def alone(self) -> bool:
        """Whether nobody else has claimed any unit; if so, all are claimed by this turn."""
        return _try(self._descriptor, 0, 0)

    def end(self) -> None:
        """Give everything back."""
        if self.alone():
            lock_of(self._path).unlink(missing_ok=True)  # while it is held: nobody else can have acquired it
        os.close(self._descriptor)  # unlocks all at once: of two that end, one finds itself alone


def _acquire(path: Path, *, wait: bool) -> int:
    lock = lock_of(path)
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # lockf, not flock: forked workers do not inherit it, so those that outlive a killed parent block nobody.
            if wait:
                fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, WHOLE_PLACE)
            elif not _try(descriptor, 1, WHOLE_PLACE):
                raise _held(path)
            if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder removed the file between our opening and locking it: try the new one


def _try(descriptor: int, count: int, start: int) -> bool:
    """Lock so many bytes (0: to the end) if nobody else holds one of them. Raises: OSError."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, start)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            return False
        raise
    return True


def _held(path: Path) -> AvarcError:
    return AvarcError(
        f"'{path}' is being written by another process",
        f"it holds the lock '{lock_of(path)}'",
        "wait for it to end, or write to another file",
    )
