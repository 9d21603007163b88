"""RandAR's initialization (arXiv:2412.01827 and its code)."""

from __future__ import annotations

import torch
from torch import nn

from avarc_cli.models.llamagen import initialize as llamagen
from avarc_cli.models.llamagen.network import LlamaGen


@torch.no_grad()
def initialize(model: LlamaGen) -> LlamaGen:
    """LlamaGen's initialization; the vector of the instructions is drawn like an embedding."""
    llamagen.initialize(model)
    nn.init.normal_(model.get_parameter("pos_instruct_embeddings"), std=llamagen.STD)
    return model
