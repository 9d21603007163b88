"""Units as tasks of a Ray cluster: what a dead worker was at is done again elsewhere, and the parts are the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.tokens.encoder import UnitEncoder
from avarc_cli.work.chunks import Part

RETRIES = 5  # of one unit whose worker died
AHEAD = 2  # units queued for each worker

_encoders: dict[str, UnitEncoder] = {}  # in a worker: the one it was given last, fetched once


def parts(encoder: UnitEncoder, units: Mapping[int, range], tick: Callable[[int], None]) -> Iterator[tuple[int, Part]]:
    """Each unit's number and part, in the order in which they are ready; tick is called with the images of each.

    Joins the cluster that RAY_ADDRESS names, or the one on this machine, or starts one here. Workers read the images
    at the paths that this process sees. They compute with as many threads as this process, since roundings depend on
    that; a tokenizer on a GPU needs a GPU for each task.

    Raises: UsageError when Ray is not installed; AvarcError when a unit fails for good.
    """
    ray = _import()
    if not ray.is_initialized():
        ray.init(configure_logging=False, log_to_driver=False, include_dashboard=False)
    import torch

    threads, on_gpu = torch.get_num_threads(), _device(encoder).startswith("cuda")
    cores = min(threads, max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes()))  # or no node would do
    task = ray.remote(_part).options(num_cpus=cores, num_gpus=int(on_gpu), max_retries=RETRIES)
    shared = ray.put(encoder)
    waiting = list(units.items())[::-1]
    running: dict[Any, int] = {}
    at_once = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)) // max(1, cores))
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number, unit = waiting.pop()
                running[task.remote([shared], shared.hex(), unit, threads)] = number
            ready, _ = ray.wait(list(running))
            for made in ready:
                number = running.pop(made)
                yield number, _result(ray, made)
                tick(len(units[number]))
    finally:
        for unfinished in running:
            ray.cancel(unfinished, force=True)


def _part(shared: list[Any], key: str, unit: range, threads: int) -> Part:
    """In a worker: one unit. The encoder comes in a list, lest Ray fetches it anew for every task."""
    import ray
    import torch

    if key not in _encoders:
        _encoders.clear()
        torch.set_num_threads(threads)
        _encoders[key] = ray.get(shared[0])
    return next(part for _, part in _encoders[key].parts({0: unit}, workers=0))


def _import() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns about this in all who ask for no GPU
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send statistics home
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray", "it is not installed", "pip install 'avarc[ray]'") from None
    return ray


def _device(encoder: UnitEncoder) -> str:
    return str(getattr(encoder.tokenizer, "device", "cpu"))


def _result(ray: Any, made: Any) -> Part:
    try:
        part: Part = ray.get(made)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AvarcError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        why = str(error).split("\n", maxsplit=1)[0]
        fix = "look into Ray's logs, and run the same again: finished units are kept"
        raise AvarcError("a unit could not be encoded on Ray", why, fix) from error
    return part
