"""Where the keys and values of a prefix are written: memory that is allocated once and lent to one batch at a time.

A prefix is one tensor (blocks, 2, P, H, S, D): keys before values, P pairs, H heads, S positions, D head width.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Workspace:
    """Memory of the largest prefix so far.

    A batch's survivors are compacted out of it before the next batch is scored, so that memory is mapped once and not
    anew in every batch. While somebody still holds what was lent, others get memory of their own.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._lent: Callable[[], Tensor | None] = lambda: None

    def lend(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor of this shape, given back when nobody refers to it any more; views do not count."""
        if self._lent() is not None:
            return torch.empty(shape, dtype=dtype, device=device)
        size = math.prod(shape)
        if self._memory is None or self._memory.numel() < size or self._memory.dtype != dtype:
            self._memory = None  # first, so that both are never there together
            self._memory = torch.empty(size, dtype=dtype, device=device)
        lent = self._memory[:size].view(*shape)
        self._lent = weakref.ref(lent)
        return lent
