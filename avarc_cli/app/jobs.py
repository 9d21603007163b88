"""Work for users: they take turns, and work ends at its next step when its user leaves.

There are two lanes, so that no classification waits for another user's new class. Each does one piece of work at a
time. All that uses this process's models is in one lane: models compute with all cores, reuse their memory, and depend
on settings that a process has once.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from avarc_cli.app.sessions import Session
from avarc_cli.errors import AvarcError
from avarc_cli.words import counted

LOOK = 0.2  # seconds between two looks at whether a user is still there

Result = TypeVar("Result")


class Left(Exception):  # it is no error
    """The user left."""


class Busy(AvarcError):
    """There is too much work already; it may be less in a minute."""


class Job(Generic[Result]):
    """One piece of work. Its thread asks with `check` whether the user is still there."""

    def __init__(self, session: Session, lane: Lane, work: Callable[[Job[Any]], Result]) -> None:
        self.session, self.lane = session, lane
        self.progress = ""
        """What the user's page shows."""
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._work, self._left = work, threading.Event()

    def do(self) -> Result:
        """Do the work. Raises: Left; what the work raises."""
        self.check()
        return self._work(self)

    @property
    def is_left(self) -> bool:
        """Whether the user left."""
        return self._left.is_set()

    def leave(self) -> None:
        """The user left."""
        self._left.set()

    def report(self, progress: str) -> None:
        """Show this in the user's page."""
        self.progress = progress

    def check(self) -> None:
        """Raises: Left."""
        if self.is_left:
            raise Left


class Lane:
    """One thread that works for all users in turn: the user whose work began last is the last in the line."""

    def __init__(self, name: str, *, most: int, most_of_one: int) -> None:
        """most: pieces of work that may wait or be done, of all users; most_of_one: of one user."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"avarc-{name}")
        self._most, self._most_of_one = most, most_of_one
        self._line: dict[Session, deque[Job[Any]]] = {}
        """What waits, by user, in the order of their turns."""
        self._running: Job[Any] | None = None
        self._last: Session | None = None
        """The user whose work began last."""
        self._is_closed = False

    async def run(
        self, session: Session, work: Callable[[Job[Any]], Result], is_gone: Callable[[], Awaitable[bool]]
    ) -> Result:
        """Do this work for a user.

        Args:
            is_gone: whether the user has left.
        Raises: Left when the user does, or the app ends; Busy when there is too much work already; what the work
            raises.
        """
        if self._is_closed:
            raise Left
        self._check_room(session)
        job = Job(session, self, work)
        self._line.setdefault(session, deque()).append(job)
        session.jobs.append(job)
        self._begin_next()
        try:
            while not job.result.done():
                await asyncio.wait({job.result}, timeout=LOOK)
                job.progress = self._waiting_for(job) or job.progress
                if not job.result.done() and await is_gone():
                    self._leave(job)
            return job.result.result()
        finally:  # also where the server ends
            self._leave(job)
            session.jobs.remove(job)

    def _check_room(self, session: Session) -> None:
        """Raises: Busy."""
        at_work = [job for job in session.jobs if job.lane is self and not job.is_left]
        if len(at_work) >= self._most_of_one:
            raise Busy("your last request is still at work", "wait until it is done, or close the page that made it")
        there = sum(map(len, self._line.values())) + (self._running is not None)
        if there >= self._most:
            raise Busy("the app is busy", f"it has {counted(there, 'request')} to work on; try again in a minute")

    def _waiting_for(self, job: Job[Any]) -> str:
        """What the user's page shows while the job waits."""
        users = list(self._line)
        if job not in self._line.get(job.session, ()):
            return ""
        return f"waiting for other users: {users.index(job.session) + 1} before you"

    def _begin_next(self) -> None:
        if self._running is not None or not self._line:
            return
        session = self._last = next((each for each in self._line if each is not self._last), next(iter(self._line)))
        own = self._line.pop(session)
        job = self._running = own.popleft()
        job.progress = ""
        if own:
            self._line[session] = own  # behind the others
        done = asyncio.wrap_future(self._thread.submit(job.do))
        done.add_done_callback(lambda _: self._end(job, done))

    def _end(self, job: Job[Any], done: asyncio.Future[Any]) -> None:
        self._running = None
        if done.cancelled():
            job.result.cancel()
        elif error := done.exception():
            _fail(job, error)
        elif not job.result.done():
            job.result.set_result(done.result())
        self._begin_next()

    def _leave(self, job: Job[Any]) -> None:
        """Give up a job, at once where it waits."""
        job.leave()
        own = self._line.get(job.session, deque())
        if job in own:
            own.remove(job)
            if not own:
                del self._line[job.session]
            _fail(job, Left())

    def close(self) -> None:
        """Give up everything, for good."""
        self._is_closed = True
        for job in [*([self._running] if self._running else []), *(job for own in self._line.values() for job in own)]:
            self._leave(job)
        self._thread.shutdown(wait=False, cancel_futures=True)


def _fail(job: Job[Any], error: BaseException) -> None:
    if not job.result.done():
        job.result.set_exception(error)
        job.result.exception()  # it is no surprise where the request has ended


class Jobs:
    """The two lanes."""

    def __init__(self) -> None:
        self.scoring = Lane("scoring", most=32, most_of_one=8)
        """Reads, classifies, explains and draws."""
        self.learning = Lane("learning", most=8, most_of_one=1)
        """Learns classes, in processes of their own."""

    def close(self) -> None:
        """Give up everything."""
        self.scoring.close()
        self.learning.close()


@contextmanager
def stopping(check: Callable[[], None]) -> Iterator[None]:
    """Call `check`, which raises to end the work, before each layer of a network that this thread runs."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    thread = threading.get_ident()

    def look(module: object, inputs: object) -> None:
        if threading.get_ident() == thread:
            check()

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
