"""VAR's initialization (arXiv:2404.02905 and its code)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

from avarc_cli.models.var.network import VAR

GATES = 1e-5  # as for VAR's d30


@torch.no_grad()
def initialize(model: VAR, gates: float = GATES) -> VAR:
    """Truncated normal of std sqrt(1 / 3C); the residual branches and the head start small. Draws from torch's seed.

    Args:
        gates: factor of what turns a class into gates, "alng" in VAR's code: 1e-3 for d16 and d20 to 5e-6 for d36.
    """
    c = model.config
    std = math.sqrt(1 / c.width / 3)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    for position in (model.pos_start, model.pos_1LC):
        nn.init.trunc_normal_(position, std=std)
    model.head.weight.mul_(0.02)
    _scale(model.head_nm.ada_lin, 0.5)
    for block in model.layers:
        block.attn.proj.weight.div_(math.sqrt(2 * c.depth))
        block.ffn.fc2.weight.div_(math.sqrt(2 * c.depth))
        if c.shared_aln:
            gates_of_class, others = block.ada_gss.normal_(std=1 / math.sqrt(c.width)).split([2, 4], dim=2)
            gates_of_class.mul_(gates)
            others.mul_(0.5)
        else:
            _scale(block.ada_lin, 0.5, gates=gates)
    return model


def _scale(ada_lin: nn.Sequential, factor: float, *, gates: float | None = None) -> None:
    """Scale the weights of a class modulation; its gates, the first third of six vectors, by their own factor."""
    weight = cast("nn.Linear", ada_lin[1]).weight
    count = 0 if gates is None else len(weight) // 3
    weight[count:].mul_(factor)
    weight[:count].mul_(gates or 1.0)
