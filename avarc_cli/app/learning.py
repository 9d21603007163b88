"""Learning a class in a process of its own, with a copy of the model, which is killed when the user leaves.

So a training disturbs no other user's numbers, and ends at once wherever it is. The bank survives that, as it survives
the end of any other process; it is all that the process writes.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

from avarc_cli.classifier import Classifier
from avarc_cli.data.preprocess import read_rgb
from avarc_cli.errors import AvarcError
from avarc_cli.loaded import LoadModel
from avarc_cli.options import Options
from avarc_cli.process import leave_ending_to_parent, starting_child
from avarc_cli.progress import Progress, ProgressBar
from avarc_cli.work.device_worker import as_message

LOOK = 0.1  # seconds between two looks at whether the user is still there


@dataclass(frozen=True)
class NewClass:
    """What is to be learned."""

    name: str
    """Of the class."""
    images: Sequence[bytes]
    """Image files."""
    bank: Path
    """Gets the class."""
    load: LoadModel
    """Loads the model that the bank is for, without a bank."""
    device: str
    """As torch names it."""


def learn(new: NewClass, check: Callable[[], None], report: Callable[[str], None]) -> None:
    """Fit the class in another process, and store it in the bank.

    Args:
        check: called all the time; what it raises ends the process.
        report: called with how far it is.
    Raises: AvarcError as `Classifier.add_class`, and when the process dies.
    """
    report("loading the model")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    resource_tracker.ensure_running()  # otherwise it is started with the process, and unblocks the signals
    process = context.Process(target=_learn_here, args=(theirs, new), name="avarc-learning")
    with starting_child():
        process.start()
    theirs.close()
    try:
        while (answer := _next(ours, check)) is not None:
            if isinstance(answer, AvarcError):
                raise answer
            report(answer)
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _next(connection: Connection, check: Callable[[], None]) -> str | AvarcError | None:
    """The next answer; None for the last one."""
    while not connection.poll(LOOK):
        check()
    check()
    try:
        answer: str | AvarcError | None = connection.recv()
    except (EOFError, OSError):
        return AvarcError("the class could not be learned", "its process ended; memory may have run out")
    return answer


def _learn_here(connection: Connection, new: NewClass) -> None:
    """In the process: learn, and answer with how far it is, an error, or None."""
    leave_ending_to_parent()

    @contextmanager
    def bar(description: str, total: int | None) -> Iterator[ProgressBar]:
        connection.send(description)
        yield _Bar(connection, description, total)

    with suppress(OSError):  # the parent needs no more
        try:
            images = [read_rgb(partial(io.BytesIO, each), "an image") for each in new.images]
            classifier = Classifier(new.load(new.device), Options())
            classifier.add_class(new.name, images, bank=new.bank, progress=bar)
        except Exception as error:  # noqa: BLE001  # whatever it is, the parent reports it
            connection.send(as_message(error))
            return
        connection.send(None)


class _Bar:
    """A `ProgressBar`."""

    def __init__(self, connection: Connection, description: str, total: int | None) -> None:
        self._connection, self._description, self._total = connection, description, total
        self.update: Progress = self._update

    def _update(self, done: int, total: int | None = None, note: str = "", /) -> None:
        of = total or self._total
        self._connection.send(f"{self._description}: {done}" + (f" of {of}" if of else ""))
