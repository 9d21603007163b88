"""Results of all chunks for one process that puts them together; those that it keeps in a folder survive a kill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from avarc_cli.errors import Interrupted, UsageError, describe_differences
from avarc_cli.progress import Notify, Progress, no_message, no_progress
from avarc_cli.words import are, counted
from avarc_cli.work.chunks import ChunkFolder, ChunkFormat, Chunks, ChunkTask, check_own, recorded_request
from avarc_cli.work.locks import only_writer
from avarc_cli.work.run import compute, recompute_corrupt
from avarc_cli.work.workers import HERE, Workers

Result = TypeVar("Result")


@dataclass(frozen=True)
class Keep(Generic[Result]):
    """Where results are kept."""

    path: Path
    """Folder of the chunks' files; made where there is none."""
    request: Mapping[str, Any]
    """What the results depend on, as JSON types."""
    format: ChunkFormat[Result]
    """How they are stored."""
    what: str
    """They are called, in messages: "features"."""


@contextmanager
def results(
    task: ChunkTask[Result],
    chunks: Chunks,
    keep: Keep[Result] | None,
    *,
    workers: Workers = HERE,
    progress: Progress = no_progress,
    say: Notify = no_message,
) -> Iterator[Iterator[Result]]:
    """Yields the results of all chunks, in their order, when they are computed; no other process may write meanwhile.

    Args:
        keep: where they are kept. Those that are there already are not computed again. None computes each here when it
            is asked for, and keeps none.
        workers: who computes them; other processes need `keep`.
        progress: called with (items done, items in all).
        say: called when a worker fails, while the others continue.
    Raises: UsageError when the folder holds other work; AvarcError when another process uses it, or a chunk cannot be
        computed; Interrupted on Ctrl-C, where results are kept; OSError.
    """
    if keep is None:
        yield _in_passing(task, chunks, progress)
        return
    folder = ChunkFolder(keep.path, chunks, keep.format)
    check_own(folder.path)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(folder.path):
        _open(folder, keep)
        every = range(chunks.count)
        try:
            missing = set(every) - folder.finished()
            compute(folder, task, missing, of=every, workers=workers, progress=progress, say=say)
            recompute_corrupt(folder, task, every, workers=workers, progress=progress, say=say)
        except KeyboardInterrupt:
            done = chunks.count_items(folder.finished())
            said = f"{done:,} of {counted(chunks.items, 'image')} {are(done)} kept in '{folder.path}'"
            raise Interrupted(f"interrupted; {said}", fix="run the same command again to continue") from None
        yield folder.stream(every)


def _in_passing(task: ChunkTask[Result], chunks: Chunks, progress: Progress) -> Iterator[Result]:
    done = 0

    def tick(items: int) -> None:
        nonlocal done
        done += items
        progress(done, chunks.items)

    tick(0)
    for _, result in task.run({number: chunks.items_of(number) for number in range(chunks.count)}, tick):
        yield result


def _open(folder: ChunkFolder[Any], keep: Keep[Any]) -> None:
    """Make the folder ready for this work. Raises: UsageError when it holds other work; OSError."""
    recorded = recorded_request(folder.path)
    if recorded is None:
        folder.create(keep.request)
    elif why := describe_differences(recorded, keep.request):
        what = f"'{folder.path}' holds {keep.what} of something else"
        raise UsageError(what, why, "name another folder, or delete it")
    folder.clean(range(folder.chunks.count))
