"""What a process inherits: signals, and standard streams that may be closed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeAlias

EXIT_SIGNAL = 128
"""Plus the number of the signal that ended a command: the exit code that shells give it."""

Handler: TypeAlias = "Callable[[int, FrameType | None], Any] | int | None"

ASK_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SECONDS_TO_IMPORT = 0.05
"""After which a signal that came during an import is looked at again."""


@dataclass
class StopRequest:
    """Whether a signal asked the process to end."""

    signal: signal.Signals | None = None
    is_served: bool = False
    """Whether the process is ending; more signals do not disturb it."""


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """End the block on SIGTERM and SIGHUP as on Ctrl-C, by a KeyboardInterrupt, so that it can clean up.

    A signal that is ignored (`nohup`) or handled otherwise stays so. Signals that follow the first do not disturb the
    cleaning up. Processes forked in the block are ended by these signals. All three wait for the end of an import: some
    packages print tracebacks, or stay half imported, when theirs is interrupted.
    """
    stop, process = StopRequest(), os.getpid()
    waiting: set[int] = set()  # signals that came during an import
    imported = _is_importing(sys._getframe())  # a module that runs avarc while it is imported can be interrupted

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)
            return
        is_first = number == signal.SIGINT or stop.signal is None or number in waiting
        if stop.is_served or not is_first:
            return
        if number != signal.SIGINT:
            stop.signal = signal.Signals(number)
        if not imported and _is_importing(frame):
            waiting.add(number)
            _call_soon(lambda: os.kill(process, number) if number in waiting else None)
            return
        waiting.discard(number)
        raise KeyboardInterrupt

    before = _handled_by_default() if threading.current_thread() is threading.main_thread() else {}
    for number in before:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        waiting.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Hold back the signals that ask the process to end, so that work can stop at a good moment.

    Yields a list that the number of the first is appended to. It is delivered at the end of the block; a second one at
    once. Signals that are ignored stay so, and only the main thread can hold them back.
    """
    held: list[int] = []
    before: dict[int, Handler] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            restore()
            os.kill(os.getpid(), number)
        held.append(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        before = {int(n): how for n in ASK_TO_END if (how := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, hold)
    try:
        yield held
    finally:
        restore()
        if held:
            os.kill(os.getpid(), held[0])


def _handled_by_default() -> dict[int, Handler]:
    """The signals that ask to end, and their handlers, unless the user or the program chose others."""
    handlers = {int(number): signal.getsignal(number) for number in ASK_TO_END}
    return {number: how for number, how in handlers.items() if how in (signal.SIG_DFL, signal.default_int_handler)}


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _call_soon(function: Callable[[], None]) -> None:
    timer = threading.Timer(SECONDS_TO_IMPORT, function)
    timer.daemon = True
    timer.start()


@contextmanager
def starting_child() -> Iterator[None]:
    """For starting a process that leaves signals to this one: they wait, here and there, while it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASK_TO_END)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_ending_to_parent() -> None:
    """In a child that multiprocessing started: ignore what asks to end, also where it reaches a whole group."""
    for number in ASK_TO_END:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASK_TO_END)
    end_with_parent()


def end_with_parent() -> None:
    """In a child that multiprocessing started: end as soon as the parent has, whatever this process does then."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
