"""Networks with random weights, whose speed is measured."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def random_weights(network: Network, seed: int = 0) -> Network:
    """This network for inference, with random weights, scaled so that linears preserve the size of their input."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.eval().requires_grad_(False).parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return network
