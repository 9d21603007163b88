"""The shape of a TA-TiTok, and how it is read off a checkpoint's tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import shape_of
from avarc_cli.tokenizers.titok import config as titok
from avarc_cli.tokenizers.titok.config import TiTokConfig

TITLE = "TA-TiTok"
ENCODER = "clip-vit-l-14-336"  # of the published models


@dataclass(frozen=True, kw_only=True)
class TATiTokConfig(TiTokConfig):
    """Shape of a TA-TiTok."""

    text_length: int
    """T, tokens of a caption."""
    text_width: int
    """D, channels of the text features."""
    text_encoder: str = ENCODER
    """Name of the one that it was trained with."""


def read_config(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> TATiTokConfig:
    """The shape of the tokenizer that these tensors make up; otherwise as `titok.config.read_config`."""
    base = titok.read_config(tensors, stated, source)
    text_length, _ = shape_of(tensors, "decoder.text_guidance_positional_embedding", 2, source=source, expected=TITLE)
    _, text_width = shape_of(tensors, "decoder.text_guidance_proj.weight", 2, source=source, expected=TITLE)
    encoder = stated.find("text_encoder")
    return with_text(base, text_length, text_width, ENCODER if encoder is None else str(encoder[0]))


def with_text(base: TiTokConfig, text_length: int, text_width: int, text_encoder: str) -> TATiTokConfig:
    """The shape of a TiTok whose decoder reads such text features, too."""
    shared = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    return TATiTokConfig(**shared, text_length=text_length, text_width=text_width, text_encoder=text_encoder)
