"""What several processes that train one model have to share."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order; each has as many. Without process group the rows themselves."""
    if not _are_several():
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def mean_of_processes(values: Tensor) -> Tensor:
    """The mean over processes, in place."""
    if _are_several():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
