"""MaskGen's initialization. The weights follow 1d-tokenizer's other models; modulations of zero are those of AdaLN-Zero
(arXiv:2212.09748), so that blocks begin as the identity, and KL's head without any noise.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import nn

from avarc_cli.models.maskgen.joint import AdaLN, JointTransformer
from avarc_cli.models.maskgen.latent_head import FinalLayer, ResidualBlock

STD = 0.02
Network = TypeVar("Network", bound=JointTransformer)


@torch.no_grad()
def initialize(network: Network) -> Network:
    """Truncated normal weights and tables; modulations, biases and the last layer of KL's head are zero.

    Draws from torch's seed.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=STD)
        if isinstance(module, nn.Linear):
            module.bias.zero_()
    for parameter in network.parameters(recurse=False):  # positions, and KL's mask
        nn.init.trunc_normal_(parameter, std=STD)
    for module in network.modules():
        if isinstance(module, AdaLN):
            module.linear.weight.zero_()
        elif isinstance(module, ResidualBlock | FinalLayer):
            cast("nn.Linear", module.adaLN_modulation[1]).weight.zero_()
        if isinstance(module, FinalLayer):
            module.linear.weight.zero_()
    return network
