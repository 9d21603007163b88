"""The modulation of a RAR's segments under its classes, computed once while there is room for it.

It takes a third of the operations of a forward pass, and depends on the class and the position alone. So one table
serves every image. The tables of all classes rarely fit: those of a RAR-B take 113 MB a class, of a RAR-XXL 349 MB.
Those of more classes than fit are not kept: each would be dropped before the next image needs it. Images that are
scored together share them all the same (`LikelihoodModel.group_cache_bytes`).

Shapes: P pairs, N different classes, T positions at hand, R positions of a run of segments, g side of the grid, E = g
+ 1, K segments under a class, k of them at once, C width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

import torch
from torch import Tensor

from avarc_cli.models.rar.network import RAR, Modulation

BUDGET = 1 << 30  # bytes of the tables that a model and those that share its weights keep. Not measured
# Segments computed in one product, always as many: what a table is must not depend on which others are missing. On two
# cores of a Xeon with AMX, products of 136, 272 and 544 rows ran at 250, 270 and 300 GFLOP/s in float32, and at 930,
# 1220 and 1320 in bfloat16 (C = 768). A GPU needs more rows to be busy; how many was not measured.
AT_ONCE, AT_ONCE_CUDA = 16, 32

Key: TypeAlias = tuple[int, int, int, int]  # number of the weights, class, first and last segment
_serial = count()


@dataclass
class Table:
    """The modulation of a run of segments under one class."""

    bytes: int
    """Of its tensors."""
    blocks: list[Tensor] = field(default_factory=list)
    """(R, 3, 2, C) of each block."""
    head: list[Tensor] = field(default_factory=list)
    """(R, 2, C), once."""


class ModulationCache:
    """Tables that were used last. Several models may share one, which then bounds the memory of all."""

    def __init__(self, budget: int = BUDGET) -> None:
        """budget: bytes."""
        self.budget, self.bytes = budget, 0
        self._tables: OrderedDict[Key, Table] = OrderedDict()

    def find(self, keys: Iterable[Key]) -> dict[Key, Table]:
        """Those of these tables that are here, which counts as using them."""
        found = {key: self._tables[key] for key in keys if key in self._tables}
        for key in found:
            self._tables.move_to_end(key)
        return found

    def make_room(self, used: int, wanted: int, bytes_each: int) -> int:
        """How many of `wanted` new tables can be stored beside the `used` ones that were found last; drops others."""
        stored = min(wanted, self.budget // bytes_each - used)
        while self.bytes + stored * bytes_each > self.budget:
            self.bytes -= self._tables.popitem(last=False)[1].bytes
        return stored

    def store(self, tables: dict[Key, Table]) -> None:
        """Keep these tables, for which there is room."""
        self._tables.update(tables)
        self.bytes += sum(table.bytes for table in tables.values())


class SegmentModulation:
    """The modulation of one model's segments."""

    def __init__(self, rar: RAR, cache: ModulationCache) -> None:
        self.rar, self.cache = rar, cache
        self.joined = rar.pos_embed.is_cuda
        """Whether the tables of a batch are joined in one: fewer operations, but everything is copied."""
        self._weights: tuple[tuple[int, int], ...] = ()
        self._serial = -1

    @property
    def bytes(self) -> int:
        """Memory of what is kept when every class was scored."""
        c = self.rar.config
        return min(self.cache.budget, self._bytes(c.ends[-1] + 1) * (c.num_classes + 1))

    def fits(self, classes: int) -> bool:
        """Whether the tables of this many classes can be kept at once."""
        return classes * self._bytes(self.rar.config.ends[-1] + 1) <= self.cache.budget

    def of(self, class_ids: Sequence[int], start: int, end: int, *, keep: bool = True) -> Modulation:
        """The modulation of positions `start` to `end` (not included) under the class of each pair.

        What is missing is computed block by block as it is asked for, and stored with `head`, if it is to be kept and
        as far as there is room.
        """
        side, weights = self.rar.config.side, self._weights_serial()
        classes = list(dict.fromkeys(class_ids))
        first, last = max(start - 1, 0) // side, max(end - 2, 0) // side
        begin = first * side + (first > 0)  # position 0 belongs to segment 0 as well
        rows, size = slice(start - begin, end - begin), self._bytes((last + 1) * side + 1 - begin)
        keys = {class_id: (weights, class_id, first, last) for class_id in classes}
        known = self.cache.find(keys.values())
        missing = [key for key in keys.values() if key not in known]
        room = self.cache.make_room(len(known), len(missing), size) if keep else 0
        new, made = {key: Table(size) for key in missing[:room]}, _Missing(self.rar, missing)

        def parts(tables: dict[Key, Tensor]) -> list[Tensor]:
            if self.joined:
                return [torch.cat([tables[key][rows] for key in keys.values()])]
            return [tables[keys[class_id]][rows] for class_id in class_ids]

        def block(layer: int) -> list[Tensor]:
            computed = made.tables(self.rar.layers[layer].modulation)
            for key, table in new.items():
                table.blocks.append(computed[key])
            return parts({key: table.blocks[layer] for key, table in known.items()} | computed)

        def head() -> list[Tensor]:
            computed = made.tables(self.rar.adaln_before_head.modulation)
            for key, table in new.items():
                table.head.append(computed[key])
            self.cache.store(new)
            return parts({key: table.head[0] for key, table in known.items()} | computed)

        return Modulation(block, head, self._rows(classes, class_ids, end - start) if self.joined else None)

    def _rows(self, classes: list[int], class_ids: Sequence[int], positions: int) -> Tensor:
        """Row of each position of each pair in the joined tables of these different classes."""
        number = {class_id: i for i, class_id in enumerate(classes)}
        row_P = torch.tensor([number[class_id] for class_id in class_ids]) * positions
        return (row_P[:, None] + torch.arange(positions)).flatten().to(self.rar.pos_embed.device)

    def _bytes(self, positions: int) -> int:
        """Of the table of a run of segments."""
        c = self.rar.config
        return 4 * positions * c.width * (6 * c.depth + 2)

    def _weights_serial(self) -> int:
        """A number of the weights as they are now, which no other weights have: training changes them in place."""
        weights = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.rar.parameters())
        if weights != self._weights:
            self._weights, self._serial = weights, next(_serial)
        return self._serial


class _Missing:
    """Tables that are computed now, those of a layer at a time."""

    def __init__(self, rar: RAR, keys: list[Key]) -> None:
        """keys: of one run of segments."""
        device, side = rar.pos_embed.device, rar.config.side
        self.keys, self.at_once = keys, AT_ONCE_CUDA if device.type == "cuda" else AT_ONCE
        each = [(class_id, segment) for _, class_id, first, last in keys for segment in range(first, last + 1)]
        each += each[-1:] * (-len(each) % self.at_once)
        class_id_K = torch.tensor([class_id for class_id, _ in each], dtype=torch.int64, device=device)
        start_K = torch.tensor([segment * side for _, segment in each], dtype=torch.int64, device=device)
        self.activated_KEC = rar.activated(class_id_K, start_K[:, None] + torch.arange(side + 1, device=device))

    def tables(self, modulation: Callable[[Tensor], Tensor]) -> dict[Key, Tensor]:
        """What `modulation` makes of the run of each key, (R, ...)."""
        segments: list[Tensor] = []
        for activated_kEC in self.activated_KEC.split(self.at_once) if self.keys else ():
            segments += modulation(activated_kEC.flatten(0, 1)).unflatten(0, activated_kEC.shape[:2])
        made, start = {}, 0
        for key in self.keys:
            stop = start + key[3] - key[2] + 1
            # Each begins with the position before it, which only segment 0 has for itself.
            made[key] = torch.cat([each[i + key[2] > 0 :] for i, each in enumerate(segments[start:stop])])
            start = stop
        return made
