"""What several processes that train one model have to share."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order; each has as many. Without process group the rows themselves."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
