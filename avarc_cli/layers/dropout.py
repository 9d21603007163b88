"""Dropout, which the published trainings have and no scoring: off until `set_dropout`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Zeroes a fraction `rate` of its input while its network is trained, and scales the rest up."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of x."""
        return F.dropout(x, self.rate) if self.training and self.rate else x


def set_dropout(network: nn.Module, rate: float) -> None:
    """Set the rate of every `Dropout` of a network. It draws from torch's own generators."""
    for module in network.modules():
        if isinstance(module, Dropout):
            module.rate = rate
