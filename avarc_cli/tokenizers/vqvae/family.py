"""The VQ-VAE family as the registry sees it: building a network from a checkpoint, starting and training a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from avarc_cli.errors import UsageError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import build
from avarc_cli.likelihood import TokenizerFamily, TokenizerLoss, TokenizerNetwork
from avarc_cli.tokenizers.vqvae.config import TITLE, VQVAEConfig, read_config
from avarc_cli.tokenizers.vqvae.loss import VQVAELoss
from avarc_cli.tokenizers.vqvae.network import VQVAE


class VQVAEFamily(TokenizerFamily):
    name = "vqvae"
    title = TITLE
    signature = ("quantize.embedding.weight", "quantize.quant_resi.qresi_ls.0.weight")
    generator = "var"

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> VQVAE:
        """The network; training statistics (`quantize.ema_vocab_hit_SV`) are ignored."""
        tensors = {k: v for k, v in tensors.items() if k != "quantize.ema_vocab_hit_SV"}
        config = read_config(tensors, stated, source)
        return build(lambda: VQVAE(config), tensors, source=source, expected=TITLE)

    def new(self, **shape: Any) -> VQVAE:
        """An initialized VQ-VAE; `shape` is the fields of VQVAEConfig, and the image_size that they must give."""
        image_size = shape.pop("image_size")
        config = VQVAEConfig(**shape)
        scales = list(config.patch_nums)
        if config.image_size != image_size or config.ch % 32 or scales != sorted(set(scales)):
            texts = [",".join(map(str, numbers)) for numbers in (config.patch_nums, config.ch_mult)]
            raise UsageError(
                f"scales {texts[0]}, multipliers {texts[1]}, width {config.ch} do not fit {image_size}-pixel images",
                f"they are for {config.image_size} pixels ({scales[-1]} x {config.downsampling}); "
                "a width is 32, 64, ...",
                "scales increase, and the last times 2 for every multiplier but one gives the image size",
            )
        network = VQVAE(config)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it
        nn.init.normal_(network.quantize.embedding.weight, std=0.5)
        return network

    def training_loss(self, network: TokenizerNetwork) -> TokenizerLoss:
        return VQVAELoss(cast("VQVAE", network))


FAMILY = VQVAEFamily()
