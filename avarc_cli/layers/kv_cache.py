"""The key/value cache of a transformer that attends to a prefix.

Shapes: P sequences, H key/value heads (fewer than query heads in grouped-query attention), T new positions, S cached
and new positions, D head width.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TOO_LARGE = 8  # times what is asked for, from which a buffer is replaced: a later stage may store little


class Workspace:
    """One buffer that the caches of a model take turns using, so that memory is not mapped again for every batch.

    The buffer is free again when the tensor from `empty` is gone. If `empty` is called before that, the tensor keeps
    the buffer, and the next one gets a new one. The engine makes use of this: it copies a batch's survivors out of the
    buffer before it scores the next batch.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._user: Callable[[], Tensor | None] = lambda: None  # weak reference to the tensor that uses the buffer

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Like torch.empty. Keep the tensor itself alive while it is in use: views of it do not reserve the buffer."""
        size, there = math.prod(shape), 0 if self._buffer is None else self._buffer.numel()
        fits = size <= there < TOO_LARGE * size
        if self._buffer is None or self._user() is not None or not fits or self._buffer.dtype != dtype:
            self._buffer = None  # frees the old one first; one in use stays with its user
            self._buffer = torch.empty(size, dtype=dtype, device=device)
        tensor = self._buffer[:size].view(*shape)
        self._user = weakref.ref(tensor)
        return tensor

    def free(self) -> None:
        """Free the buffer as soon as it is not in use: a pass that stores nothing needs none."""
        self._buffer = None


class KVCache:
    """Keys and values of the first `length` positions of P sequences, for every layer.

    A forward pass calls `append` once per layer, in order, and is complete with the last layer: then `length` grows. If
    it fails before, the cache holds what it held. All layers lie in one tensor (layers, 2, P, H, positions, D), keys
    before values, so that selecting sequences is one copy.
    """

    def __init__(self, layers: int, workspace: Workspace | None = None, *, capacity: int = 0) -> None:
        """An empty cache; the first `append` sets P, H, D, dtype and device.

        Args:
            workspace: where to take memory from; None allocates it.
            capacity: positions to allocate in the first pass, so that later passes append in place. With 0, every pass
                allocates what it stores and copies the positions before.
        """
        self.layers, self.length = layers, 0
        self.limit: int | None = None
        """Positions that the next passes store at most; they attend to all, stored or not. None stores all."""
        self._workspace, self._capacity = workspace or Workspace(), capacity
        self._memories: tuple[Tensor, ...] = ()  # of complete passes; one for each of the caches that were joined
        self._next: Tensor | None = None  # where the pass that is running stores

    def append(self, layer: int, k_PHTD: Tensor, v_PHTD: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's cached keys and values followed by the new ones, (P, H, S, D) each; stores the new ones.

        Args:
            k_PHTD, v_PHTD: of the new positions, in the dtype to store; any strides.
        """
        before, total = self.length, self.length + k_PHTD.shape[2]
        stored = total if self.limit is None else min(total, self.limit)
        if layer == 0:
            self._next = self._allocate(k_PHTD, stored)
        k, v = k_PHTD, v_PHTD
        if self._next is not None and stored == total:  # attention reads them where they are stored
            kv = self._next[layer, :, :, :, :total]
            if before and self._next is not self._memories[0]:
                kv[:, :, :, :before] = self._stored(layer)
            kv[0, :, :, before:], kv[1, :, :, before:] = k, v
            k, v = kv[0], kv[1]
        else:
            if before:
                old = self._stored(layer)
                k, v = torch.cat([old[0], k], dim=2), torch.cat([old[1], v], dim=2)
            if self._next is not None:
                kv = self._next[layer, :, :, :, :stored]
                kv[0], kv[1] = k[:, :, :stored], v[:, :, :stored]
        if layer == self.layers - 1:
            self._memories = () if self._next is None else (self._next,)
            self._next, self.length = None, stored
        return k, v

    def select(self, rows_Q: Tensor, length: int | None = None) -> KVCache:
        """A cache with a copy of these sequences, with `length` the first positions only; this one stays as it is.

        Raises: ValueError when fewer positions are cached.
        """
        length = self.length if length is None else length
        if length > self.length:
            raise ValueError(f"{self.length} positions are cached, not {length}")
        selected = KVCache(self.layers, self._workspace)
        if length:
            parts = [memory[:, :, :, :, :length] for memory in self._memories]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
            selected._memories, selected.length = (whole[:, :, rows_Q],), length
        return selected

    @staticmethod
    def joined(caches: Sequence[KVCache]) -> KVCache:
        """A cache of the sequences of all these, one after the other. It copies nothing before the next pass.

        Raises: ValueError when their lengths differ.
        """
        if len({cache.length for cache in caches}) > 1:
            raise ValueError(f"caches of {', '.join(str(cache.length) for cache in caches)} positions are not alike")
        first = caches[0]
        joined = KVCache(first.layers, first._workspace)
        joined._memories, joined.length = tuple(m for cache in caches for m in cache._memories), first.length
        return joined

    def _stored(self, layer: int) -> Tensor:
        """The layer's cached keys and values, (2, P, H, length, D)."""
        parts = [memory[layer, :, :, :, : self.length] for memory in self._memories]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _allocate(self, k_PHTD: Tensor, stored: int) -> Tensor | None:
        """Memory for `stored` positions of every layer: what there is, if it has room for more positions."""
        if stored == 0:
            self._workspace.free()
            return None
        if len(self._memories) == 1 and self.length < stored <= self._memories[0].shape[4]:
            return self._memories[0]
        pairs, heads, _, width = k_PHTD.shape
        shape = (self.layers, 2, pairs, heads, max(stored, self._capacity), width)
        return self._workspace.empty(shape, k_PHTD.dtype, k_PHTD.device)
