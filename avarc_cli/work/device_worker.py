"""In a process of `device_chunks`: load the task on the process's device, and compute the chunks that the parent sends.

First comes a `Job`, pickled apart so that all processes get the same bytes, with the name of the device; then (number,
items) of a chunk at a time. Answers are `Ticked`, `Finished` and `Failed`. torch is imported with the task.
"""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from avarc_cli.errors import AvarcError, first_line, lacks_memory
from avarc_cli.process import leave_ending_to_parent
from avarc_cli.work.chunks import TaskLoader


@dataclass(frozen=True)
class Job:
    """What all processes compute."""

    loader: TaskLoader[Any]
    """Makes the task."""
    threads: int
    """Of torch, in each process."""
    start_method: str
    """How the processes start others, which decode images; by default as they were started, which takes seconds."""


@dataclass(frozen=True)
class Ticked:
    """Items of the chunk are finished."""

    items: int


@dataclass(frozen=True)
class Finished:
    """A chunk is finished."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """A chunk could not be computed, or the task could not be loaded."""

    error: AvarcError
    """Why, for the user."""
    trace: str = ""
    """Traceback, for --debug."""
    for_good: bool = False
    """Whether the process has ended, and another one on this device would fail as well."""


def serve(connection: Connection, device: str) -> None:
    """Compute chunks until the parent closes the connection, or ends."""
    leave_ending_to_parent()
    try:
        try:
            task = _load(pickle.loads(connection.recv_bytes()), device)  # from our parent
        except Exception as error:  # noqa: BLE001  # whatever it is, the parent reports it
            connection.send(_failed(error, for_good=True))
            return
        while True:
            number, items = connection.recv()
            try:
                # To the end: a task may tick when its result was received.
                [(_, result)] = task.run({number: items}, lambda count: connection.send(Ticked(count)))
                connection.send(Finished(result))
            except (EOFError, BrokenPipeError):
                raise
            except Exception as error:  # noqa: BLE001
                connection.send(_failed(error))
    except (EOFError, ConnectionError):
        return  # the parent needs no more


def _load(job: Job, device: str) -> Any:
    import torch

    multiprocessing.set_start_method(job.start_method, force=True)
    torch.set_num_threads(job.threads)
    return job.loader(device)


def _failed(error: Exception, *, for_good: bool = False) -> Failed:
    return Failed(as_message(error), "".join(traceback.format_exception(error)), for_good)


def as_message(error: Exception) -> AvarcError:
    """What a process sends to its parent of an exception, which may not be picklable."""
    if isinstance(error, AvarcError):
        return AvarcError(error.what, error.why, error.fix)
    if lacks_memory(error):
        return AvarcError("not enough memory", first_line(error))
    return AvarcError(f"{type(error).__name__}: {first_line(error)}")
