"""Work for users, one piece at a time: dropped, or stopped at its next step, when its user leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from avarc_cli.app.sessions import Session
from avarc_cli.errors import UsageError
from avarc_cli.progress import Progress, ProgressBar

MAX_WAITING = 32  # pieces of work, of all users
LOOK = 0.2  # seconds between two looks at whether a user is still there

Result = TypeVar("Result")


class Left(Exception):  # it is no error
    """The user left."""


class Job:
    """One piece of work. Its thread asks whether the user is still there."""

    def __init__(self, session: Session) -> None:
        self.session, self._left = session, threading.Event()

    def leave(self) -> None:
        """The user left."""
        self._left.set()

    def check(self) -> None:
        """Raises: Left."""
        if self._left.is_set():
            raise Left

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[ProgressBar]:
        """A `StartProgress` that the user's page shows, and that ends the work of a user who left."""
        self.check()
        yield _Bar(self, description, total)
        self.session.progress = ""


class _Bar:
    """A `ProgressBar`."""

    def __init__(self, job: Job, description: str, total: int | None) -> None:
        self._job, self._description, self._total = job, description, total
        self.update: Progress = self._update

    def _update(self, done: int, total: int | None = None, note: str = "", /) -> None:
        self._job.check()
        of = total or self._total
        self._job.session.progress = f"{self._description}: {done}" + (f" of {of}" if of else "")


class Jobs:
    """One worker thread: models compute with all cores, and keep settings per process."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="avarc-app")
        self._waiting = 0

    async def run(
        self, session: Session, work: Callable[[Job], Result], is_gone: Callable[[], Awaitable[bool]]
    ) -> Result:
        """Do this work for a user.

        Args:
            is_gone: whether the user has left.
        Raises: Left when the user does; UsageError when there is too much work already; what the work raises.
        """
        if self._waiting >= MAX_WAITING:
            raise UsageError("the app is busy", f"{self._waiting} requests are waiting", "try again in a minute")
        job = Job(session)
        self._waiting += 1
        session.busy += 1

        def start() -> Result:
            job.check()
            return work(job)

        task = asyncio.wrap_future(self._thread.submit(start))
        task.add_done_callback(lambda _: self._end(session))
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK)
            if not task.done() and await is_gone():
                job.leave()
        return task.result()

    def _end(self, session: Session) -> None:
        self._waiting -= 1
        session.busy -= 1
        session.progress = ""

    def close(self) -> None:
        """Start nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
