"""The modulation of a RAR's segments under its classes, computed once while there is room for it.

It takes a third of the operations of a forward pass, and depends on the class and the position alone. So one table
serves every image. The tables of all classes rarely fit: those of a RAR-B take 115 MB a class, of a RAR-XXL 350 MB.
Those of more classes than fit are not kept: each would be dropped before the next image needs it. Images that are
scored together share them all the same (`LikelihoodModel.group_cache_bytes`).

A table covers a run of segments under one class. It is always computed in a product of the same shape, so its values do
not depend on which other tables are missing.

Shapes: P pairs, K tables that are computed, k of them in one product, T positions at hand, R positions of a run of
segments, C width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TypeAlias

import torch
from torch import Tensor

from avarc_cli.layers.stored import address
from avarc_cli.models.rar.network import RAR, Modulation

BUDGET = 1 << 30  # bytes of the tables that a model and those that share its weights keep. Not measured
# Segments in one product: on a CPU at least this many, and a longer run is a product of its own; on a GPU at most this
# many, unless a run is longer. On two cores of a Xeon with AMX, products of 8, 16 and 32 segments of a RAR-B (136, 272
# and 544 rows) ran at 250, 270 and 300 GFLOP/s in float32, and at 930, 1220 and 1320 in bfloat16: filling products up
# would cost more than it gains. On a GPU in half precision few launches matter more: with 32, a pass over 64 pairs of
# a RAR-B was 9,000 operations, and as slow with any kernels (docs/gpu.md). In float32 a product takes ten times as
# long. The numbers for a GPU were not timed.
AT_ONCE, AT_ONCE_CUDA, AT_ONCE_CUDA_FP32 = 6, 256, 32

Key: TypeAlias = tuple[int, int, int, int]  # number of the weights, class, first and last segment
_serial = count()


@dataclass
class Table:
    """The modulation of a run of segments under one class."""

    bytes: int
    """Of its tensors."""
    parts: list[Tensor] = field(default_factory=list)
    """(R, 3, 2, C) of each block, then (R, 2, C) of the head."""


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
        """Whether all tables of a batch are one tensor: fewer operations, and adaln looks up each position's row."""
        self._weights: tuple[tuple[int, int], ...] = ()
        self._serial = -1

    @property
    def bytes(self) -> int:
        """Memory of what is kept when every class was scored."""
        return min(self.cache.budget, self._bytes_of_class * (self.rar.config.num_classes + 1))

    def fits(self, classes: int) -> bool:
        """Whether the tables of this many classes can be kept at once."""
        return classes * self._bytes_of_class <= self.cache.budget

    def of(self, class_ids: Sequence[int], start: int, end: int, *, keep: bool = True) -> Modulation:
        """The modulation of positions `start` to `end` (not included) under the class of each pair.

        What is missing is computed block by block as it is asked for, and stored with `head`, if it is to be kept and
        as far as there is room.
        """
        side, weights = self.rar.config.side, self._weights_serial()
        first, last = max(start - 1, 0) // side, max(end - 2, 0) // side
        key_P = [(weights, class_id, first, last) for class_id in class_ids]
        known = self.cache.find(dict.fromkeys(key_P))
        missing = [key for key in dict.fromkeys(key_P) if key not in known]
        size = self._bytes(first, last)
        room = self.cache.make_room(len(known), len(missing), size) if keep else 0
        new = {key: Table(size) for key in missing[:room]}
        begin, stop = self._positions(first, last)
        tables = _Tables(key_P, known, new, _Missing(self.rar, missing, begin, stop))
        part = tables.joined if self.joined else partial(tables.separate, slice(start - begin, end - begin))

        def head() -> list[Tensor]:
            found = part(self.rar.config.depth, self.rar.adaln_before_head.modulation)
            self.cache.store(new)
            return found

        return Modulation(
            lambda layer: part(layer, self.rar.layers[layer].modulation),
            head,
            tables.rows(start - begin, end - begin).to(self.rar.pos_embed.device) if self.joined else None,
        )

    @property
    def _bytes_of_class(self) -> int:
        return self._bytes(0, len(self.rar.config.ends) - 1)

    def _bytes(self, first: int, last: int) -> int:
        """Of the table of a run of segments."""
        c, (begin, stop) = self.rar.config, self._positions(first, last)
        return 4 * (stop - begin) * c.width * (6 * c.depth + 2)

    def _positions(self, first: int, last: int) -> tuple[int, int]:
        """Positions of a run of segments, from the first up to one that is not included; position 0 is segment 0's."""
        side = self.rar.config.side
        return first * side + (first > 0), (last + 1) * side + 1

    def _weights_serial(self) -> int:
        """A number of the weights as they are now, which no other weights have: training changes them in place."""
        weights = tuple((address(p), 0 if p.is_inference() else p._version) for p in self.rar.parameters())
        if weights != self._weights:
            self._weights, self._serial = weights, next(_serial)
        return self._serial


class _Missing:
    """Tables that are computed now, those of a layer at a time."""

    def __init__(self, rar: RAR, keys: list[Key], begin: int, stop: int) -> None:
        """keys: of one run of segments, that of positions `begin` to `stop` (not included)."""
        device, side = rar.pos_embed.device, rar.config.side
        segments = (stop - 1) // side - max(begin - 1, 0) // side
        self.keys, self.rows, self.at_once = keys, stop - begin, -(-AT_ONCE // segments)
        if device.type == "cuda":
            in_half = rar.precision.activations.itemsize < 4
            self.at_once = max(1, (AT_ONCE_CUDA if in_half else AT_ONCE_CUDA_FP32) // segments)
        class_ids = [class_id for _, class_id, _, _ in keys]
        class_ids += class_ids[-1:] * (-len(keys) % self.at_once)
        self.computed = len(class_ids)
        """Number of tables, including those that only fill the last product."""
        class_id_K = torch.tensor(class_ids, dtype=torch.int64, device=device)
        self.activated_KRC = rar.activated(class_id_K, torch.arange(begin, stop, device=device))

    def products(self, modulation: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """All tables as `modulation` makes them, (k R, ...) each."""
        for activated_kRC in self.activated_KRC.split(self.at_once) if self.keys else ():
            yield modulation(activated_kRC.flatten(0, 1))

    def tables(self, modulation: Callable[[Tensor], Tensor]) -> dict[Key, Tensor]:
        """The table of each key as `modulation` makes it, (R, ...)."""
        each = (table for product in self.products(modulation) for table in product.split(self.rows))
        return dict(zip(self.keys, each, strict=False))  # without those that only fill the last product


@dataclass
class _Tables:
    """The tables that one pass uses, a part at a time: a block's, or the head's."""

    key_P: list[Key]
    known: dict[Key, Table]
    new: dict[Key, Table]
    """Of those that are computed now, the ones to keep. They get the parts that are asked for."""
    made: _Missing

    def separate(self, at_hand: slice, number: int, modulation: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The part of this number of each pair, (T, ...); `at_hand`: positions of the run."""
        found = self.made.tables(modulation)
        for key, table in self.new.items():  # a copy, unless it is the whole of a product
            table.parts.append(found[key] if self.made.at_once == 1 else found[key].clone())
        found |= {key: table.parts[number] for key, table in self.known.items()}
        return [found[key][at_hand] for key in self.key_P]

    def joined(self, number: int, modulation: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """One table of the parts of this number, as they are computed."""
        tables = [*self.made.products(modulation), *(table.parts[number] for table in self.known.values())]
        whole = tables[0] if len(tables) == 1 else torch.cat(tables)
        # The tables to keep are the first ones computed.
        for table, of_key in zip(self.new.values(), whole.split(self.made.rows), strict=False):
            table.parts.append(of_key.clone())
        return [whole]

    def rows(self, start: int, end: int) -> Tensor:
        """Row of each position of each pair in the joined table, (P T,); `start`, `end`: positions of the run."""
        number_of = {key: i for i, key in enumerate(self.made.keys)}
        number_of |= {key: self.made.computed + i for i, key in enumerate(self.known)}
        first_P = torch.tensor([number_of[key] for key in self.key_P]) * self.made.rows
        return (first_P[:, None] + torch.arange(start, end)).flatten()
