"""What a process gets from whoever starts it: signals, and standard streams that may be closed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_SIGNAL = 128
"""Plus the number of the signal that ended a command: the exit code that shells give it."""


@dataclass
class StopRequest:
    """Whether a signal asked the process to end."""

    signal: signal.Signals | None = None


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """End the block on SIGTERM and SIGHUP as on Ctrl-C, by a KeyboardInterrupt, so that it can clean up.

    A signal that is ignored (`nohup`) or handled otherwise stays so. Signals that follow the first do not disturb the
    cleaning up. Processes forked in the block are ended by these signals.
    """
    stop, process = StopRequest(), os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif stop.signal is None:
            stop.signal = signal.Signals(number)
            raise KeyboardInterrupt

    ours = []
    if threading.current_thread() is threading.main_thread():  # Python allows no other to handle signals
        ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def open_standard_streams() -> None:
    """Open those of stdin, stdout and stderr that were closed when the process started.

    Otherwise the next file to be opened would get their number, and what any library prints would be written into it.
    Writing to the stdout that this opens fails, as it does where it is closed; messages to this stderr are lost.
    """
    for descriptor, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number, this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # for the life of the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def discard_stdout() -> None:
    """Lose what stdout could not write, which Python would try again, and complain about, when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
