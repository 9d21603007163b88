"""The TiToks as the registry sees them: building a network from a checkpoint, training a new one of one stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from avarc_cli.family import TokenizerFamily, TokenizerLoss
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import build
from avarc_cli.likelihood import TokenizerNetwork
from avarc_cli.tokenizers.titok.config import HEAD_WIDTH, TITLE, TiTokConfig, TransformerConfig, read_config
from avarc_cli.tokenizers.titok.loss import TiTokLoss
from avarc_cli.tokenizers.titok.network import Codebook, TiTok


class TiTokFamily(TokenizerFamily):
    name = "titok"
    title = TITLE
    signature = ("latent_tokens", "encoder.patch_embed.weight", "decoder.mask_token", "decoder.ffn.0.weight")
    generator = "maskgit"

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> TiTok:
        config = read_config(tensors, stated, source)
        return build(lambda: TiTok(config), tensors, source=source, expected=TITLE)

    def new(self, **shape: Any) -> TiTok:
        """An initialized single-stage TiTok.

        `shape` is image_size, patch, num_tokens, vocab_size, code_channels, and width and depth of both transformers.
        """
        transformer = TransformerConfig(width=shape["width"], depth=shape["depth"], heads=shape["width"] // HEAD_WIDTH)
        config = TiTokConfig(
            num_tokens=shape["num_tokens"],
            vocab_size=shape["vocab_size"],
            code_channels=shape["code_channels"],
            patch=shape["patch"],
            side=shape["image_size"] // shape["patch"],
            encoder=transformer,
            decoder=transformer,
            l2_norm=False,
            pixel_decoder=None,
        )
        network = TiTok(config)
        codebook = cast("Codebook", network.quantize)
        nn.init.uniform_(codebook.embedding.weight, -1 / config.vocab_size, 1 / config.vocab_size)
        return network

    def training_loss(self, network: TokenizerNetwork) -> TokenizerLoss:
        return TiTokLoss(cast("TiTok", network))


FAMILY = TiTokFamily()
