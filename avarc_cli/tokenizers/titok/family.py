"""The TiToks as the registry sees them: building a network from a checkpoint, training one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from avarc_cli.family import TokenizerFamily, TokenizerLoss
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import build
from avarc_cli.layers.weight_decay import ONE_D_TOKENIZER
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.maskgit_vqgan.network import MaskGITVQGAN
from avarc_cli.tokenizers.titok import stages
from avarc_cli.tokenizers.titok.config import TITLE, read_config
from avarc_cli.tokenizers.titok.loss import FirstStageLoss, SecondStageLoss, one_stage_loss
from avarc_cli.tokenizers.titok.network import TiTok


class TiTokFamily(TokenizerFamily):
    name = "titok"
    title = TITLE
    signature = ("latent_tokens", "encoder.patch_embed.weight", "decoder.mask_token", "decoder.ffn.0.weight")
    generator = "maskgit"
    teacher = "maskgit-vqgan"
    undecayed = ONE_D_TOKENIZER

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> TiTok:
        config = read_config(tensors, stated, source)
        return build(lambda: TiTok(config), tensors, source=source, expected=TITLE)

    def new(self, **shape: Any) -> TiTok:
        """An initialized single-stage TiTok.

        `shape` is image_size, patch, num_tokens, vocab_size (0 for a VAE), code_channels, and width and depth of both
        transformers.
        """
        side = shape.pop("image_size") // shape["patch"]
        return stages.initialize(TiTok(stages.new_config(predicted=None, side=side, **shape)))

    def training_loss(self, network: TokenizerNetwork) -> TokenizerLoss:
        return one_stage_loss(cast("TiTok", network))

    def first_stage(self, teacher: TokenizerNetwork, **shape: Any) -> tuple[TiTok, TokenizerLoss]:
        """As `TokenizerFamily.first_stage`; `shape` is that of `new` without image_size, and patch may be None."""
        network = stages.first_stage(cast("MaskGITVQGAN", teacher), **shape).to(_device(teacher))
        return network, FirstStageLoss(network, teacher)

    def second_stage(
        self, first: Mapping[str, Tensor], stated: ConfigSources, source: str, teacher: TokenizerNetwork
    ) -> tuple[TiTok, TokenizerLoss]:
        network = stages.second_stage(first, stated, source, cast("MaskGITVQGAN", teacher)).to(_device(teacher))
        return network, SecondStageLoss(network)


def _device(network: TokenizerNetwork) -> torch.device:
    return next(network.parameters()).device


FAMILY = TiTokFamily()
