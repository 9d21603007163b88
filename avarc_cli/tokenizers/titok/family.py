"""The TiToks as the registry sees them: building a network from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import build
from avarc_cli.likelihood import TokenizerFamily
from avarc_cli.tokenizers.titok.config import TITLE, read_config
from avarc_cli.tokenizers.titok.network import TiTok


class TiTokFamily(TokenizerFamily):
    name = "titok"
    title = TITLE
    signature = ("latent_tokens", "quantize.embedding.weight", "decoder.mask_token", "decoder.ffn.0.weight")

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> TiTok:
        config = read_config(tensors, stated, source)
        return build(lambda: TiTok(config), tensors, source=source, expected=TITLE)


FAMILY = TiTokFamily()
