"""The class modulation of a VAR, computed once per class.

Shapes: N classes, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_cli.models.var.network import VAR, Condition

# Classes computed together: always the same ones, so that a row's bits do not depend on which classes are candidates.
CLASSES_AT_ONCE = 64  # not measured


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy to a GPU is only queued: it does not wait for the work queued before."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class ClassTable:
    """Modulation of every class (num_classes + 1 rows per block), filled when classes are first used."""

    def __init__(self, var: VAR) -> None:
        self.var = var
        self.rows = var.config.num_classes + 1
        self.tables: Condition | None = None
        self.filled: set[int] = set()
        """Groups of CLASSES_AT_ONCE classes that are in the tables."""

    def of(self, class_id_P: Tensor) -> Condition:
        """The condition of pairs of these classes. Class ids on the host spare a wait for the device."""
        for group in (class_id_P // CLASSES_AT_ONCE).unique().tolist():
            if group not in self.filled:
                self._fill(group)
                self.filled.add(group)
        assert self.tables is not None
        return self.tables._replace(row_P=to_device(class_id_P, self.var.pos_1LC.device))

    def _fill(self, group: int) -> None:
        start = group * CLASSES_AT_ONCE
        stop = min(start + CLASSES_AT_ONCE, self.rows)
        made = self.var.condition(torch.arange(start, stop, device=self.var.pos_1LC.device))
        if self.tables is None:
            self.tables = Condition(*([self._table(t) for t in made.blocks], self._table(made.head)))
        for table, rows in zip([*self.tables.blocks, self.tables.head], [*made.blocks, made.head], strict=True):
            table[start:stop] = rows

    def _table(self, rows: Tensor) -> Tensor:
        return rows.new_empty(self.rows, *rows.shape[1:])

    @property
    def bytes(self) -> int:
        """Memory of the whole table."""
        c = self.var.config
        return 4 * self.rows * c.width * (6 * c.depth + 2)
