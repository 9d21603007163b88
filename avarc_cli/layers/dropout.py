"""Dropout, which the published trainings have and no scoring: off until `set_dropout`.

It draws from torch's own generators, for the whole batch whatever rows a process computes. So a batch is dropped in the
same places for any number of processes and passes; drawing takes as many times longer as there are parts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.rows import Rows


class Dropout(nn.Module):
    """Zeroes a fraction `rate` of its input (B, ...) while its network is trained, and scales the rest up."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0
        self.rows: Rows | None = None
        """Of a batch, that the input is of; None for a whole batch."""

    @property
    def drops(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.rate > 0

    @property
    def is_of_part(self) -> bool:
        """Whether the input is part of a batch."""
        return self.rows is not None and len(self.rows) < self.rows.of

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of x."""
        if not self.drops:
            return x
        if self.rows is None or not self.is_of_part:
            return F.dropout(x, self.rate)
        whole = torch.ones(self.rows.of, *x.shape[1:], dtype=x.dtype, device=x.device)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            whole = whole.contiguous(memory_format=torch.channels_last)  # numbers are drawn in the order of memory
        return x * self.rows.take(F.dropout(whole, self.rate))


def attention(
    q_BHTD: Tensor,
    k_BHUD: Tensor,
    v_BHUD: Tensor,
    drop: Dropout,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention of which weights are dropped, (B, H, T, D). On CUDA, torch draws others for a whole batch."""
    if not drop.is_of_part:
        how: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "dropout_p": drop.rate}
        return F.scaled_dot_product_attention(q_BHTD, k_BHUD, v_BHUD, **how)
    scale = q_BHTD.shape[-1] ** -0.5 if scale is None else scale
    scores_BHTU = scale * q_BHTD @ k_BHUD.transpose(-1, -2)
    if is_causal:
        hidden_TU = torch.ones_like(scores_BHTU[0, 0], dtype=torch.bool).triu(1)
        scores_BHTU = scores_BHTU.masked_fill(hidden_TU, -math.inf)
    weights_BHTU: Tensor = drop(scores_BHTU.softmax(-1))
    return weights_BHTU @ v_BHUD


def set_dropout(network: nn.Module, rate: float) -> None:
    """Set the rate of every `Dropout` of a network."""
    for drop in _dropouts(network):
        drop.rate = rate


def set_rows(network: nn.Module, rows: Rows) -> None:
    """Say which rows of a batch the network is about to compute."""
    for drop in _dropouts(network):
        drop.rows = rows


def _dropouts(network: nn.Module) -> list[Dropout]:
    return [module for module in network.modules() if isinstance(module, Dropout)]
