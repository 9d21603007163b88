"""The TA-TiToks as the registry sees them: building a network from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from avarc_cli.family import TokenizerFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import build
from avarc_cli.tokenizers.tatitok.config import TITLE, read_config
from avarc_cli.tokenizers.tatitok.network import TATiTok
from avarc_cli.tokenizers.titok.family import FAMILY as TITOK

USAGE = "quantize.embed_prob"
"""How often each code was used in training, which some files keep; nothing reads it."""


class TATiTokFamily(TokenizerFamily):
    name = "tatitok"
    title = TITLE
    signature = (*TITOK.signature, "decoder.text_guidance_proj.weight")

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> TATiTok:
        config = read_config(tensors, stated, source)
        kept = {key: tensor for key, tensor in tensors.items() if key != USAGE}
        return build(lambda: TATiTok(config), kept, source=source, expected=TITLE)


FAMILY = TATiTokFamily()
