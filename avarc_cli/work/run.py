"""Computing chunks, in this process or on a Ray cluster; each is saved as soon as it is finished."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

from avarc_cli.errors import UsageError
from avarc_cli.progress import Progress
from avarc_cli.work.chunks import ChunkFolder, ChunkTask, Tick

Result = TypeVar("Result")

LOCAL = "local"
ENGINES = (LOCAL, "ray")


def check_engine(engine: str) -> None:
    """Raises: UsageError unless `compute` has this engine."""
    if engine not in ENGINES:
        raise UsageError(f"no engine '{engine}'", f"there are {', '.join(ENGINES)}")


def compute(
    folder: ChunkFolder[Result],
    task: ChunkTask[Result],
    numbers: Collection[int],
    *,
    of: Collection[int],
    engine: str,
    progress: Progress,
) -> int:
    """Compute these chunks, and save each one when it is finished. They are claimed by this process (`work.locks`).

    Args:
        of: chunks whose items progress counts; those that are not in `numbers` count as finished.
        engine: "local", or "ray": the workers of a Ray cluster compute them in any order.
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
    for number, result in _start(engine, task, chunks, tick):
        folder.save(number, result)
    return to_do


def recompute_corrupt(
    folder: ChunkFolder[Result], task: ChunkTask[Result], numbers: Collection[int], *, engine: str, progress: Progress
) -> int:
    """Read these chunks, and compute those again whose files are corrupt. Returns and raises: as `compute`."""
    computed = 0
    while corrupt := folder.corrupt(sorted(numbers)):
        computed += compute(folder, task, corrupt, of=numbers, engine=engine, progress=progress)
    return computed


def _start(
    engine: str, task: ChunkTask[Result], chunks: Mapping[int, range], tick: Tick
) -> Iterator[tuple[int, Result]]:
    if engine == LOCAL:
        return task.run(chunks, tick)
    from avarc_cli.work import ray_chunks

    return ray_chunks.run(task, chunks, tick)
