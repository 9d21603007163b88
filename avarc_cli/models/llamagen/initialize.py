"""LlamaGen's initialization (arXiv:2406.06525 and its code)."""

from __future__ import annotations

import torch
from torch import nn

from avarc_cli.models.llamagen.network import LlamaGen

STD = 0.02


@torch.no_grad()
def initialize(model: LlamaGen) -> LlamaGen:
    """Normal weights of std 0.02; the head is zero. Draws from torch's seed."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=STD)
    nn.init.zeros_(model.output.weight)
    return model
