"""Tables of class embeddings whose last row is the unconditional class: one class alone, and more classes.

Shapes: N classes, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FirstRow(nn.Module):
    """A table of embeddings in which the row of the first class is `row_C`.

    `before` rows come before it, such as those of tokens; the last row is the unconditional class's.
    """

    def __init__(self, row_C: nn.Parameter, *, before: int = 0) -> None:
        super().__init__()
        self.row_C, self.before = row_C, before

    def forward(self, table: Tensor) -> Tensor:
        return torch.cat([table[: self.before], self.row_C[None], table[self.before + 1 :]])


def with_mean_rows(table_NC: Tensor, count: int) -> Tensor:
    """The table with `count` rows before the last one, each the mean of the rows before."""
    new = table_NC[:-1].mean(0, keepdim=True).expand(count, -1)
    return torch.cat([table_NC[:-1], new, table_NC[-1:]])
