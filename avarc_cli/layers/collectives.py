"""What the processes of one training exchange. In a training of one process, everything stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from avarc_cli import processes
from avarc_cli.errors import AvarcError, UsageError

_Object = TypeVar("_Object")


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Be one of the processes that a launcher started, if it started several: by NCCL on GPUs, by Gloo elsewhere.

    Within such a block another changes nothing. Raises: UsageError for a GPU by number, which all would share.
    """
    if processes.count() == 1 or _are_several():
        yield
        return
    if device.type == "cuda" and device.index not in (None, processes.local_rank()):
        raise UsageError(
            f"{processes.count()} processes cannot share {device}",
            fix="use --device cuda: each takes its own",
        )
    # Objects travel by Gloo in any case: NCCL would carry them through the GPU's memory.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def count() -> int:
    """Processes in the training at hand."""
    return distributed.get_world_size() if _are_several() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return distributed.get_rank() if _are_several() else 0


def add_up(values: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if _are_several():
        distributed.all_reduce(values)
    return values


def concatenate(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order; a detached copy on this process's device."""
    return torch.cat(from_all(rows.detach().cpu())).to(rows.device) if _are_several() else rows


def by_first(make: Callable[[], _Object]) -> _Object:
    """What the first process makes, which pickle can carry. Raises: in all processes, the AvarcError of the first."""
    if not _are_several():
        return make()
    made: list[_Object | AvarcError | None] = [None]
    if rank() == 0:
        try:
            made = [make()]
        except AvarcError as error:
            made = [error]
    distributed.broadcast_object_list(made)
    if isinstance(made[0], AvarcError):
        raise made[0]
    return cast("_Object", made[0])


def from_all(thing: _Object) -> list[_Object]:
    """What each process has, which pickle can carry, in their order."""
    things = [thing] * count()
    if _are_several():
        distributed.all_gather_object(things, thing)
    return things


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
