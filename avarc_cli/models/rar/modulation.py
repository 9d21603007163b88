"""The modulation of a RAR's segments under its classes, computed once while there is room for it.

It takes a third of the operations of a forward pass, and depends on the class and the position alone. So one table
serves every image. The tables of all classes rarely fit: those of a RAR-B take 113 MB a class, of a RAR-XXL 349 MB.

Shapes: P pairs, N different classes, K tables of one class and segment, R = K E rows, g side of the grid, E = g + 1
positions of a table, C width.
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

BUDGET = 2 << 30  # bytes that a model and those that share its weights keep. Not measured
# Tables computed in one product, always as many: what a table is must not depend on which others are missing. On a CPU
# one product of 17 rows takes as long as one of 136; a GPU needs more rows to be busy (the latter is not measured).
AT_ONCE, AT_ONCE_CUDA = 8, 32

Key: TypeAlias = tuple[int, int, int]  # of the weights, class, segment
_serial = count()


@dataclass
class Table:
    """The modulation of one segment under one class.

    The table of segment s has positions s g to (s + 1) g: its own, and the last one before, of which only that of
    segment 0 is its own.
    """

    blocks: list[Tensor] = field(default_factory=list)
    """(E, 3, 2, C) of each block."""
    head: Tensor | None = None
    """(E, 2, C)."""


class ModulationCache:
    """Tables that were used last. Several models may share one, which then bounds the memory of all."""

    def __init__(self, budget: int = BUDGET) -> None:
        """budget: bytes."""
        self.budget = budget
        self._tables: OrderedDict[Key, Table] = OrderedDict()

    def find(self, keys: Iterable[Key]) -> dict[Key, Table]:
        """Those of these tables that are here, which counts as using them."""
        found = {key: self._tables[key] for key in keys if key in self._tables}
        for key in found:
            self._tables.move_to_end(key)
        return found

    def make_room(self, used: int, wanted: int, bytes_each: int) -> int:
        """How many of `wanted` new tables can be stored beside the `used` ones that were found last; drops others."""
        most = self.budget // bytes_each
        stored = min(wanted, most - used)
        while len(self._tables) + stored > most:
            self._tables.popitem(last=False)
        return stored

    def store(self, tables: dict[Key, Table]) -> None:
        """Keep these tables, for which there is room."""
        self._tables.update(tables)


class SegmentModulation:
    """The modulation of one model's segments."""

    def __init__(self, rar: RAR, cache: ModulationCache) -> None:
        self.rar, self.cache = rar, cache
        self._weights: tuple[tuple[int, int], ...] = ()
        self._serial = -1

    @property
    def bytes_each(self) -> int:
        """Of a table."""
        c = self.rar.config
        return 4 * (c.side + 1) * c.width * (6 * c.depth + 2)

    @property
    def bytes(self) -> int:
        """Most that tables of this model take."""
        c = self.rar.config
        return min(self.cache.budget, self.bytes_each * (c.num_classes + 1) * c.side)

    def of(self, class_ids: Sequence[int], start: int, end: int) -> Modulation:
        """The modulation of positions `start` to `end` (not included) under the class of each pair.

        What is missing is computed block by block as it is asked for, and stored, as far as there is room, with `head`.
        """
        side, weights = self.rar.config.side, self._weights_serial()
        classes = list(dict.fromkeys(class_ids))
        first, last = max(start - 1, 0) // side, max(end - 2, 0) // side
        keys = [(weights, class_id, segment) for class_id in classes for segment in range(first, last + 1)]
        known = self.cache.find(keys)
        missing = [key for key in keys if key not in known]
        stored = missing[: self.cache.make_room(len(known), len(missing), self.bytes_each)]
        rows = {
            s: slice(max(start - s * side, int(s > 0)), min(end - s * side, side + 1)) for s in range(first, last + 1)
        }
        made = _Missing(self.rar, missing)
        new = {key: Table() for key in stored}

        def joined(tables: dict[Key, Tensor]) -> Tensor:
            parts = [tables[key][rows[key[2]]] for key in keys]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        def block(layer: int) -> Tensor:
            computed = made.block(layer)
            for key, table in new.items():
                table.blocks.append(computed[key].clone())  # not a view of what was computed with it
            return joined({key: table.blocks[layer] for key, table in known.items()} | computed)

        def head() -> Tensor:
            computed = made.head()
            for key, table in new.items():
                table.head = computed[key].clone()
            self.cache.store(new)
            return joined({key: table.head for key, table in known.items() if table.head is not None} | computed)

        return Modulation(block, head, self._rows(classes, class_ids, end - start))

    def _rows(self, classes: list[int], class_ids: Sequence[int], positions: int) -> Tensor | None:
        """Row of each position of each pair in the tables of these different classes."""
        if classes == list(class_ids):
            return None
        number = {class_id: i for i, class_id in enumerate(classes)}
        row_P = torch.tensor([number[class_id] for class_id in class_ids]) * positions
        return (row_P[:, None] + torch.arange(positions)).flatten().to(self.rar.pos_embed.device)

    def _weights_serial(self) -> int:
        """A number of the weights as they are now, which no other weights have: training changes them in place."""
        weights = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.rar.parameters())
        if weights != self._weights:
            self._weights, self._serial = weights, next(_serial)
        return self._serial


class _Missing:
    """Tables that are computed now."""

    def __init__(self, rar: RAR, keys: list[Key]) -> None:
        self.rar, self.keys = rar, keys
        device, side = rar.pos_embed.device, rar.config.side
        self.at_once = AT_ONCE_CUDA if device.type == "cuda" else AT_ONCE
        padded = keys + keys[-1:] * (-len(keys) % self.at_once)
        class_id_K = torch.tensor([class_id for _, class_id, _ in padded], dtype=torch.int64, device=device)
        start_K = torch.tensor([segment * side for _, _, segment in padded], dtype=torch.int64, device=device)
        positions_KE = start_K[:, None] + torch.arange(side + 1, device=device)
        self.activated_KEC = rar.activated(class_id_K, positions_KE)

    def block(self, layer: int) -> dict[Key, Tensor]:
        return self._each(self.rar.layers[layer].modulation)

    def head(self) -> dict[Key, Tensor]:
        return self._each(self.rar.adaln_before_head.modulation)

    def _each(self, modulation: Callable[[Tensor], Tensor]) -> dict[Key, Tensor]:
        tables: list[Tensor] = []
        for activated_kEC in self.activated_KEC.split(self.at_once) if self.keys else ():
            tables += modulation(activated_kEC.flatten(0, 1)).unflatten(0, activated_kEC.shape[:2])
        return dict(zip(self.keys, tables, strict=False))  # without the padding
