"""The MaskGIT-VQGANs as the registry sees them: building a network from a checkpoint, training a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from avarc_cli.family import TokenizerFamily, TokenizerLoss
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.conv_blocks import side_of_new
from avarc_cli.layers.state_dict import build
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.maskgit_vqgan.config import TITLE, MaskGITVQGANConfig, read_config
from avarc_cli.tokenizers.maskgit_vqgan.loss import MaskGITVQGANLoss
from avarc_cli.tokenizers.maskgit_vqgan.network import MaskGITVQGAN


class MaskGITVQGANFamily(TokenizerFamily):
    name = "maskgit-vqgan"
    title = TITLE
    signature = ("quantize.embedding.weight", "encoder.down.0.block.0.conv1.weight", "decoder.mid.0.conv1.weight")
    generator = "rar"

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> MaskGITVQGAN:
        config = read_config(tensors, stated, source)
        return build(lambda: MaskGITVQGAN(config), tensors, source=source, expected=TITLE)

    def new(self, **shape: Any) -> MaskGITVQGAN:
        """An initialized MaskGIT-VQGAN; `shape` is image_size and the fields of MaskGITVQGANConfig but side."""
        side = side_of_new(shape.pop("image_size"), shape["ch"], shape["ch_mult"])
        network = MaskGITVQGAN(MaskGITVQGANConfig(**shape, side=side))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it
        nn.init.uniform_(network.quantize.embedding.weight, -1 / network.vocab_size, 1 / network.vocab_size)
        return network

    def training_loss(self, network: TokenizerNetwork) -> TokenizerLoss:
        return MaskGITVQGANLoss(cast("MaskGITVQGAN", network))


FAMILY = MaskGITVQGANFamily()
