"""Processes that die at a chosen moment, for tests of what they leave behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TypeVar

PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24  # <sys/ptrace.h> of Linux
NOT_TRACED = 77
T = TypeVar("T")


def in_child(work: Callable[[], object]) -> int:
    """Run it in a fork. Returns: 0 when it ended, 1 when it raised, -signal when it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(_fork(work), 0)[1])


def _fork(work: Callable[[], object]) -> int:
    """Start it in a fork; the child's process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def in_children(*works: Callable[[], object]) -> list[int]:
    """Run each in a fork, at once. Returns: of each what `in_child` returns."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [_fork(work) for work in works]]


def killed_when(condition: Callable[[], bool], work: Callable[[], object]) -> bool:
    """Run it in a fork that is killed (SIGKILL) at the first file that it opens while the condition holds.

    Returns: whether it ended so.
    """

    def watched() -> None:
        process = os.getpid()
        sys.addaudithook(lambda event, _: os.kill(process, signal.SIGKILL) if event == "open" and condition() else None)
        work()

    return in_child(watched) == -signal.SIGKILL


def killed_after(seconds: float, with_signal: signal.Signals, work: Callable[[], object]) -> bool:
    """Run it in a fork and send the signal after this time. Returns: whether the signal ended it."""
    pid, deadline = _fork(work), time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(min(left, 0.005))
    os.kill(pid, with_signal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) < 0


def killed_at_call(count: int, work: Callable[[], object]) -> bool | None:
    """Run it in a fork that is killed when it enters its `count`-th system call (Linux).

    Returns: whether it came to its end before; None where the system does not allow tracing.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    pid = os.fork()
    if pid == 0:
        if libc.ptrace(PTRACE_TRACEME, 0, None, None) != 0:
            os._exit(NOT_TRACED)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    for _ in range(2 * count - 1):  # it stops where it enters a call, and where it leaves it
        if not os.WIFSTOPPED(status):
            break
        libc.ptrace(PTRACE_SYSCALL, pid, None, None)
        _, status = os.waitpid(pid, 0)
    if os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return False
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, NOT_TRACED}, f"the process ended with {code}"
    return True if code == 0 else None


def signal_at(step: int) -> signal.Signals:
    """The signal that ends a process at its n-th step: SIGKILL, and every third time SIGTERM."""
    return signal.SIGTERM if step % 3 == 1 else signal.SIGKILL


class DieAt:
    """Ends the process at its n-th step: when a file is opened, renamed, removed or locked, or when it is called."""

    STEPS = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "fcntl.lockf", "shutil.rmtree"})

    def __init__(self, step: int) -> None:
        self.left, self.signal = step, signal_at(step)

    def __call__(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), self.signal)
        self.left -= 1

    def watch_files(self) -> None:
        """From now on, each step with a file counts. It cannot be undone: for processes that are to die."""
        sys.addaudithook(lambda event, args: self() if event in self.STEPS else None)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def until(condition: Callable[[], T], seconds: float = 300) -> T:
    """Wait until something is true, and return it. Raises: TimeoutError; the machine may be doing much else."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
