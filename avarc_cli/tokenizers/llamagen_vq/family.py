"""The LlamaGen tokenizers as the registry sees them: building a network from a checkpoint, training a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.family import TokenizerFamily, TokenizerLoss
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.conv_blocks import side_of_new
from avarc_cli.layers.state_dict import build
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.llamagen_vq.config import TITLE, LlamaGenVQConfig, read_config
from avarc_cli.tokenizers.llamagen_vq.loss import LlamaGenVQLoss
from avarc_cli.tokenizers.llamagen_vq.network import LlamaGenVQ

STATISTICS = "quantize.codebook_used"  # codes that the training used last


class LlamaGenVQFamily(TokenizerFamily):
    name = "llamagen-vq"
    title = TITLE
    signature = ("quantize.embedding.weight", "encoder.conv_blocks.0.res.0.conv1.weight", "encoder.mid.1.q.weight")
    generator = "llamagen"

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> LlamaGenVQ:
        """The network; training statistics are ignored."""
        weights = {key: tensor for key, tensor in tensors.items() if key != STATISTICS}
        config = read_config(weights, stated, source)
        return build(lambda: LlamaGenVQ(config), weights, source=source, expected=TITLE)

    def new(self, **shape: Any) -> LlamaGenVQ:
        """An initialized LlamaGen tokenizer.

        `shape` is image_size and the fields of LlamaGenVQConfig but z_channels, half the width of the last level as in
        the published ones, and side.
        """
        ch, ch_mult = shape["ch"], shape["ch_mult"]
        side = side_of_new(shape.pop("image_size"), ch, ch_mult)
        network = LlamaGenVQ(LlamaGenVQConfig(**shape, z_channels=ch * ch_mult[-1] // 2, side=side))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it
        with torch.no_grad():  # unit vectors, as the reference draws them
            codes_VZ = network.quantize.embedding.weight
            codes_VZ.copy_(F.normalize(nn.init.uniform_(codes_VZ, -1, 1), dim=1))
        return network

    def training_loss(self, network: TokenizerNetwork) -> TokenizerLoss:
        return LlamaGenVQLoss(cast("LlamaGenVQ", network))


FAMILY = LlamaGenVQFamily()
