"""What the processes of one training exchange. In a training of one process, everything stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed

from avarc_cli import processes
from avarc_cli.errors import UsageError

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
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
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
    if not _are_several():
        return rows
    parts: list[Tensor] = [rows] * count()
    distributed.all_gather_object(parts, rows.detach().cpu())
    return torch.cat(parts).to(rows.device)


def from_first(thing: _Object) -> _Object:
    """What the first process has, which pickle can carry."""
    things = [thing]
    if _are_several():
        distributed.broadcast_object_list(things)
    return things[0]


def from_all(thing: _Object) -> list[_Object]:
    """What each process has, which pickle can carry, in their order."""
    things = [thing] * count()
    if _are_several():
        distributed.all_gather_object(things, thing)
    return things


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
