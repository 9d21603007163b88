"""The class modulation of a VAR, computed once for each class that is asked for.

Shapes: N classes of the model, R rows of the table, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_cli.heap import return_freed_memory
from avarc_cli.models.var.network import VAR, Condition

# Classes computed together. A class always has the same place among as many, and a row of a matrix product depends on
# its place and on the shape, not on the other rows: so a class's bits do not depend on the others that are asked for.
#
# On one thread of a busy Xeon, 100 scattered classes of a d16 took 1.8 s and all 1001 5.4 s; with 32, 1.7 s and 8.3 s;
# with 16, 3.0 s and 17.9 s.
TOGETHER = 64


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy to a GPU is only queued: it does not wait for the work queued before."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class ClassTable:
    """Modulation of the classes that have been used, a row each."""

    def __init__(self, var: VAR) -> None:
        self.var = var
        self.classes = var.config.num_classes + 1
        self.tables: Condition | None = None
        self.row_N = torch.full((self.classes,), -1)
        """Row of each class in the tables, on the host; -1 for one that has none."""

    def of(self, class_id_P: Tensor) -> Condition:
        """The condition of pairs of these classes. Class ids on the host spare a wait for the device."""
        class_id_P = class_id_P.cpu()
        self.prepare(class_id_P)
        assert self.tables is not None
        return self.tables._replace(row_P=to_device(self.row_N[class_id_P], self.var.pos_1LC.device))

    def prepare(self, class_id_N: Tensor) -> None:
        """Compute what these classes lack. All at once takes less time than some by some."""
        missing_M = class_id_N[self.row_N[class_id_N] < 0].unique()
        if not len(missing_M):
            return
        made = [self._compute(group_m) for group_m in _groups(missing_M)]
        tables = made if self.tables is None else [self.tables, *made]
        start = 0 if self.tables is None else len(self.tables.head)
        blocks = [torch.cat(rows) for rows in zip(*(table.blocks for table in tables), strict=True)]
        self.tables = Condition(blocks, torch.cat([table.head for table in tables]))
        self.row_N[torch.cat(_groups(missing_M))] = torch.arange(start, start + len(missing_M))
        del made, tables
        return_freed_memory()  # of the groups: for few classes, several times the table's

    def _compute(self, class_id_m: Tensor) -> Condition:
        """The modulation of classes that all have different places."""
        place_m, device = class_id_m % TOGETHER, self.var.pos_1LC.device
        every = torch.full((TOGETHER,), self.classes - 1)
        every[place_m] = class_id_m
        made, place_m = self.var.condition(every.to(device)), place_m.to(device)
        return Condition([rows[place_m] for rows in made.blocks], made.head[place_m])

    @property
    def bytes(self) -> int:
        """Memory of a table of all classes."""
        c = self.var.config
        return 4 * self.classes * c.width * (6 * c.depth + 2)


def _groups(class_id_M: Tensor) -> list[Tensor]:
    """Different classes in groups whose places differ, as few as possible."""
    place_M = class_id_M % TOGETHER
    before_M = ((place_M[:, None] == place_M[None]).tril(-1)).sum(1)  # classes of the same place that come first
    return [class_id_M[before_M == number] for number in range(int(before_M.max()) + 1)]
