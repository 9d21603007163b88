"""RAR's initialization (arXiv:2411.00776 and its code)."""

from __future__ import annotations

import torch
from torch import nn

from avarc_cli.models.rar.network import RAR

STD = 0.02


@torch.no_grad()
def initialize(model: RAR) -> RAR:
    """Truncated normal weights of std 0.02; modulation and biases are zero, so that blocks begin as the identity.

    Draws from torch's seed.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=STD)
        if isinstance(module, nn.Linear):
            module.bias.zero_()
    for table in (model.pos_embed, model.target_aware_pos_embed, model.timesteps_embeddings):
        nn.init.trunc_normal_(table, std=STD)
    for linear in model.modulation_linears:
        linear.weight.zero_()
    return model
