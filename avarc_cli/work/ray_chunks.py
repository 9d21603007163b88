"""Chunks as tasks of a Ray cluster. What a dead worker was computing is computed again by another."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from avarc_cli.errors import AvarcError, UsageError, first_line

if TYPE_CHECKING:
    from avarc_cli.work.chunks import ChunkTask, Tick

Result = TypeVar("Result")

MAX_RETRIES = 5
"""How often a chunk whose worker died is tried again, before the run fails; a choice without measurement."""

QUEUED_PER_WORKER = 2
"""One being computed and one waiting, so that no worker is idle while a result is saved."""

_tasks: dict[str, Any] = {}  # in a worker: the task it was sent last, by the id of Ray's copy


def run(task: ChunkTask[Result], chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, Result]]:
    """Number and result of each chunk, in the order in which they are finished; tick is called for each chunk.

    Joins the cluster that RAY_ADDRESS names, or the one on this machine, or starts one here. Workers open files at the
    same paths as this process. They use as many threads as this process, since roundings depend on that.

    Raises: UsageError when Ray is not installed; AvarcError when a chunk fails for good.
    """
    ray = _import_ray()
    if not ray.is_initialized():
        with _keep_sigterm_handler():
            ray.init(configure_logging=False, log_to_driver=False, include_dashboard=False)
    import torch

    threads = torch.get_num_threads()
    # A worker that asks for more cores than any node has would never start.
    cores = min(threads, max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes()))
    remote = ray.remote(_compute).options(num_cpus=cores, num_gpus=int(task.uses_gpu), max_retries=MAX_RETRIES)
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)) // max(1, cores))
    copy = ray.put(task)
    pending = list(chunks.items())[::-1]
    running: dict[Any, int] = {}
    try:
        while pending or running:
            while pending and len(running) < QUEUED_PER_WORKER * workers:
                number, items = pending.pop()
                running[remote.remote([copy], copy.hex(), items, threads)] = number
            ready, _ = ray.wait(list(running))
            for reference in ready:
                number = running.pop(reference)
                yield number, _get(ray, reference)
                tick(len(chunks[number]))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _compute(copy: list[Any], key: str, items: range, threads: int) -> Any:
    """In a worker: one chunk. The copy is in a list: a bare argument would be fetched again for every chunk."""
    import ray
    import torch

    if key not in _tasks:
        _tasks.clear()
        torch.set_num_threads(threads)
        _tasks[key] = ray.get(copy[0])
    return next(result for _, result in _tasks[key].run({0: items}, lambda items: None))


@contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Undo that Ray replaces it by one that ends the process without a word."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():  # elsewhere neither Ray nor this may set one
        signal.signal(signal.SIGTERM, handler)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else every process without a GPU warns
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default Ray sends usage statistics to its makers
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray", "it is not installed", "pip install 'avarc[ray]'") from None
    return ray


def _get(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AvarcError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        fix = "see Ray's logs, and run the same command again: finished chunks are kept"
        raise AvarcError("a chunk could not be computed on Ray", first_line(error), fix) from error
