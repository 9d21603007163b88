"""Chunks dealt one by one to processes of this machine, each with a device for itself.

What fails once is computed again, by another process where there is one; a process that died is started again. So one
that the system killed for its memory costs its chunk's time, and a chunk that no process can compute costs two tries.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar

from avarc_cli.errors import AvarcError
from avarc_cli.process import starting_child
from avarc_cli.progress import Notify
from avarc_cli.words import are, counted
from avarc_cli.work.chunks import ChunkTask, Tick
from avarc_cli.work.device_worker import Failed, Finished, Job, Ticked, serve

Result = TypeVar("Result")

MAX_TRIES = 2
"""Of a chunk; and chunks in a row that fail on one device, which then gets no more."""


def run(
    task: ChunkTask[Result], devices: Sequence[str], chunks: Mapping[int, range], tick: Tick, say: Notify
) -> Iterator[tuple[int, Result]]:
    """Number and result of each chunk, in the order in which they are finished.

    Processes use as many threads as this one, since roundings depend on that.

    Args:
        devices: as torch names them; a process for each. say: called when a chunk fails.
    Raises: AvarcError when a chunk failed twice, or no device is left, after all others are finished.
    """
    import torch

    job = pickle.dumps(Job(task.loader(), torch.get_num_threads(), multiprocessing.get_start_method()))
    deal = _Deal(chunks, [_Worker(name, device, job) for name, device in _names(devices)], say)
    try:
        busy = deal.next_round()
        while busy:
            finished: list[tuple[int, Result]] = []
            for ready in wait([worker.connection for worker in busy]):
                worker = next(each for each in busy if each.connection is ready)
                number, answer = worker.chunk, worker.receive()
                if isinstance(answer, Ticked):
                    worker.ticked += answer.items
                    tick(answer.items)
                elif isinstance(answer, Finished):
                    worker.be_idle()
                    finished.append((number, answer.result))
                else:
                    tick(-worker.ticked)
                    deal.note_failure(worker, answer)
            busy = deal.next_round()  # first: saving results takes a while
            yield from finished
        deal.check()
    finally:
        for worker in deal.workers:
            worker.kill()


def _names(devices: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and device of each process."""
    for index, device in enumerate(devices):
        number = devices[: index + 1].count(device)
        yield (device if devices.count(device) == 1 else f"{device}, process {number}"), device


class _Worker:
    """A process on a device, as the parent sees it. It runs while it has a connection."""

    def __init__(self, name: str, device: str, job: bytes) -> None:
        self.name, self.device, self._job = name, device, job
        self.chunk = -1
        """Being computed; -1 for none."""
        self.ticked = 0
        """Items of this chunk that are finished."""
        self.failures = 0
        """Chunks in a row that failed here."""
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        assert self._connection is not None, "the process was started"
        return self._connection

    def start(self) -> bool:
        """Start the process, unless it runs. Returns: whether it was started."""
        if self._process is not None:
            return False
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        resource_tracker.ensure_running()  # otherwise it is started with the process, and unblocks the signals
        with starting_child():
            self._process = context.Process(target=serve, args=(theirs, self.device))
            self._process.start()
        theirs.close()
        return True

    def send_job(self) -> None:
        with suppress(OSError):  # it died: `receive` tells
            self.connection.send_bytes(self._job)

    def send(self, number: int, items: range) -> None:
        self.chunk, self.ticked = number, 0
        with suppress(OSError):
            self.connection.send((number, items))

    def receive(self) -> Ticked | Finished | Failed:
        """The next answer; a failure where the process died."""
        try:
            answer: Ticked | Finished | Failed = self.connection.recv()
        except (EOFError, OSError):
            return Failed(self._death())
        return answer

    def be_idle(self) -> None:
        self.chunk, self.failures = -1, 0

    def kill(self) -> None:
        """End the process at once: what it sent is here, and it holds nothing else."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self.connection.close()
            self._process = None

    def _death(self) -> AvarcError:
        assert self._process is not None, "the process was started"
        self._process.join()
        code = self._process.exitcode or 0
        self.kill()
        if code >= 0:
            return AvarcError("the process ended", f"its exit code is {code}")
        why = "the system does so when memory runs out" if -code == signal.SIGKILL else ""
        return AvarcError(f"the process was ended by {signal.Signals(-code).name}", why)


class _Deal:
    """Which chunks are still to be computed, and who may compute them."""

    def __init__(self, chunks: Mapping[int, range], workers: Sequence[_Worker], say: Notify) -> None:
        self.workers = workers
        self._chunks, self._pending, self._say = chunks, list(chunks), say
        self._failed_on: dict[int, list[_Worker]] = {}
        self._given_up: dict[int, AvarcError] = {}
        self._last_error: AvarcError | None = None

    @property
    def _usable(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.failures < MAX_TRIES]

    def next_round(self) -> list[_Worker]:
        """Give chunks to all that have none. Returns: the workers that compute something."""
        dealt = {}
        for worker in self._usable:
            if worker.chunk < 0 and (number := self._choose(worker)) is not None:
                self._pending.remove(number)
                dealt[worker] = number
        started = [worker for worker in dealt if worker.start()]  # all at once: loading takes a while
        for worker in started:
            worker.send_job()
        for worker, number in dealt.items():
            worker.send(number, self._chunks[number])
        return [worker for worker in self.workers if worker.chunk >= 0]

    def _choose(self, worker: _Worker) -> int | None:
        """The first chunk that did not fail on this worker, unless it is the only one."""
        alone = len(self._usable) == 1
        failed_on = self._failed_on
        return next((n for n in self._pending if alone or worker not in failed_on.get(n, ())), None)

    def note_failure(self, worker: _Worker, failed: Failed) -> None:
        """A worker's chunk is not finished: it waits behind the others, or is given up."""
        number, worker.chunk = worker.chunk, -1
        tried_on = self._failed_on.setdefault(number, [])
        if failed.for_good:
            worker.kill()
            worker.failures = MAX_TRIES
            what = f"no chunk can be computed on {worker.name}"
        else:
            worker.failures += 1
            tried_on.append(worker)
            names = " and ".join(dict.fromkeys(each.name for each in tried_on))
            what = f"chunk {number} could not be computed on {names}"
        self._last_error = self._error(what, failed)
        if len(tried_on) >= MAX_TRIES:
            self._given_up[number] = self._last_error
        else:
            self._pending.append(number)
            self._say(f"{what}: {failed.error.what}{'; it is tried again' if self._usable else ''}")

    def check(self) -> None:
        """Raises: AvarcError when a chunk is not finished."""
        missing = len(self._given_up) + len(self._pending)
        if not missing:
            return
        error = next(iter(self._given_up.values()), self._last_error)
        assert error is not None, "a chunk is missing because something failed"
        kept = f"{missing:,} of {counted(len(self._chunks), 'chunk')} {are(missing)} missing, finished chunks are kept"
        error.why += f"; {kept}"
        raise error

    def _error(self, what: str, failed: Failed) -> AvarcError:
        inner = failed.error
        why, fix = ": ".join(filter(None, (inner.what, inner.why))), "run the same command again to continue"
        error = AvarcError(what, why, inner.fix or fix)
        error.__cause__ = _InProcess(failed.trace) if failed.trace else None  # what --debug shows
        return error


class _InProcess(Exception):
    """The traceback of another process."""
