"""The TA-TiToks as the registry sees them: building a network from a checkpoint, training one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from avarc_cli.family import TokenizerFamily, TokenizerLoss
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import build
from avarc_cli.layers.weight_decay import ONE_D_TOKENIZER
from avarc_cli.text.features import TextInput
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.tatitok.config import TITLE, read_config, with_text
from avarc_cli.tokenizers.tatitok.network import TATiTok
from avarc_cli.tokenizers.titok import stages
from avarc_cli.tokenizers.titok.family import FAMILY as TITOK
from avarc_cli.tokenizers.titok.loss import one_stage_loss

USAGE = "quantize.embed_prob"
"""How often each code was used in training, which some files keep; nothing reads it."""


class TATiTokFamily(TokenizerFamily):
    name = "tatitok"
    title = TITLE
    signature = (*TITOK.signature, "decoder.text_guidance_proj.weight")
    undecayed = ONE_D_TOKENIZER

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> TATiTok:
        config = read_config(tensors, stated, source)
        kept = {key: tensor for key, tensor in tensors.items() if key != USAGE}
        return build(lambda: TATiTok(config), kept, source=source, expected=TITLE)

    def new(self, **shape: Any) -> TATiTok:
        """An initialized TA-TiTok; `shape` is a single-stage TiTok's, and text: the `TextInput` of what it reads."""
        text: TextInput = shape.pop("text")
        side = shape.pop("image_size") // shape["patch"]
        config = stages.new_config(predicted=None, side=side, **shape)
        return stages.initialize(TATiTok(with_text(config, text.positions, text.width, text.encoder)))

    def training_loss(self, network: TokenizerNetwork) -> TokenizerLoss:
        return one_stage_loss(cast("TATiTok", network))


FAMILY = TATiTokFamily()
