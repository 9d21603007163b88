"""Computing chunks, in this process or by other workers; each is saved as soon as it is finished."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import closing
from typing import TypeVar

from avarc_cli.progress import Notify, Progress, no_message
from avarc_cli.work.chunks import ChunkFolder, ChunkTask, Tick
from avarc_cli.work.workers import HERE, Workers

Result = TypeVar("Result")


def compute(
    folder: ChunkFolder[Result],
    task: ChunkTask[Result],
    numbers: Collection[int],
    *,
    of: Collection[int],
    workers: Workers = HERE,
    progress: Progress,
    say: Notify = no_message,
) -> int:
    """Compute these chunks, and save each one when it is finished. They are claimed by this process (`work.locks`).

    Args:
        of: chunks whose items progress counts; those that are not in `numbers` count as finished.
        workers: who computes them; several finish them in any order.
        say: called when a worker fails, while the others continue.
    Returns: number of items computed.
    Raises: OSError; AvarcError when a chunk cannot be computed.
    """
    total, to_do = (folder.chunks.count_items(some) for some in (of, numbers))
    done = total - to_do
    progress(done, total)
    if not numbers:
        return 0

    def tick(items: int) -> None:
        nonlocal done
        done += items
        progress(done, total)

    chunks = {number: folder.chunks.items_of(number) for number in sorted(numbers)}
    with closing(_start(workers, task, chunks, tick, say)) as results:  # no worker survives a full disk
        for number, result in results:
            folder.save(number, result)
    return to_do


def recompute_corrupt(
    folder: ChunkFolder[Result],
    task: ChunkTask[Result],
    numbers: Collection[int],
    *,
    workers: Workers = HERE,
    progress: Progress,
    say: Notify = no_message,
) -> int:
    """Read these chunks, and compute those again whose files are corrupt. Returns and raises: as `compute`."""
    computed = 0
    while corrupt := folder.corrupt(sorted(numbers)):
        computed += compute(folder, task, corrupt, of=numbers, workers=workers, progress=progress, say=say)
    return computed


def _start(
    workers: Workers, task: ChunkTask[Result], chunks: Mapping[int, range], tick: Tick, say: Notify
) -> Generator[tuple[int, Result], None, None]:
    if workers.engine == "ray":
        from avarc_cli.work import ray_chunks

        yield from ray_chunks.run(task, chunks, tick)
    elif workers.devices:
        from avarc_cli.work import device_chunks

        yield from device_chunks.run(task, workers.devices, chunks, tick, say)
    else:
        yield from task.run(chunks, tick)
