"""The VQ-VAE family as the registry sees it: building a network from a checkpoint, starting and training a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from avarc_cli.family import TokenizerFamily, TokenizerLoss
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import build
from avarc_cli.settings import SMALL, check_tokenizer_shape
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.vqvae.config import TITLE, VQVAEConfig, read_config
from avarc_cli.tokenizers.vqvae.loss import VQVAELoss
from avarc_cli.tokenizers.vqvae.network import VQVAE


class VQVAEFamily(TokenizerFamily):
    name = "vqvae"
    title = TITLE
    signature = ("quantize.embedding.weight", "quantize.quant_resi.qresi_ls.0.weight")
    generator = "var"
    undecayed = ("quantize.embedding",)  # of vaex, a trainer by VAR's authors

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> VQVAE:
        """The network; training statistics (`quantize.ema_vocab_hit_SV`) are ignored."""
        tensors = {k: v for k, v in tensors.items() if k != "quantize.ema_vocab_hit_SV"}
        config = read_config(tensors, stated, source)
        return build(lambda: VQVAE(config), tensors, source=source, expected=TITLE)

    def new(self, **shape: Any) -> VQVAE:
        """An initialized VQ-VAE.

        `shape` is the fields of VQVAEConfig, the image_size that they must give, and optionally initialization.
        """
        image_size, initialization = shape.pop("image_size"), shape.pop("initialization", SMALL)
        config = VQVAEConfig(**shape)
        check_tokenizer_shape(image_size, config.patch_nums, config.ch_mult, config.ch)
        network = VQVAE(config)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it
        if initialization == SMALL:
            nn.init.normal_(network.quantize.embedding.weight, std=0.5)
            return network
        for module in network.modules():  # as vaex, a trainer by VAR's authors
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, gain=0.5)
        bound = config.z_channels**-0.5 / 36
        nn.init.uniform_(network.quantize.embedding.weight, -bound, bound)
        return network

    def training_loss(self, network: TokenizerNetwork) -> TokenizerLoss:
        return VQVAELoss(cast("VQVAE", network))


FAMILY = VQVAEFamily()
