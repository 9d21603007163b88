"""MaskGIT's initialization, as in the code of 1d-tokenizer: normal weights, biases of zero.

Those of a UViT are truncated; those of a BERT are not, as transformers begins it.
"""

from __future__ import annotations

import torch
from torch import nn

from avarc_cli.models.maskgit.bert import Bert
from avarc_cli.models.maskgit.uvit import UViT

STD = 0.02


@torch.no_grad()
def initialize_uvit(model: UViT) -> UViT:
    """Draws from torch's seed."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    nn.init.trunc_normal_(model.pos_embed, std=STD)
    return model


@torch.no_grad()
def initialize_bert(model: Bert) -> Bert:
    """Draws from torch's seed."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(std=STD)
        if isinstance(module, nn.Linear):
            module.bias.zero_()
    return model
