"""The shape of a text-conditional LlamaGen: a LlamaGen's, and that of the captions that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from avarc_cli.layers.state_dict import shape_of
from avarc_cli.models.llamagen.config import LlamaGenConfig

PROJECTION = "cls_embedding.cap_proj.fc1.weight"
NULL = "cls_embedding.uncond_embedding"
TEXT_ENCODER = "flan-t5-xl"  # of the published models


@dataclass(frozen=True, kw_only=True)
class CaptionLlamaGenConfig(LlamaGenConfig):
    """Shape of a text-conditional LlamaGen. It has no classes."""

    title: ClassVar[str] = "text-conditional LlamaGen transformer"

    caption_width: int  # D, channels of the text encoder's hidden states
    positions: int  # T, of captions
    text_encoder: str = TEXT_ENCODER  # name of the encoder of the captions that it was trained on

    @classmethod
    def of_condition(cls, tensors: Mapping[str, Tensor], source: str) -> dict[str, int]:
        width = shape_of(tensors, PROJECTION, 2, source=source, expected=cls.title)[1]
        positions = shape_of(tensors, NULL, 2, source=source, expected=cls.title)[0]
        return {"num_classes": 0, "caption_width": width, "positions": positions}

    @property
    def as_stated(self) -> dict[str, int]:
        own = {"caption_dim": self.caption_width, "cls_token_num": self.positions}
        return {name: value for name, value in super().as_stated.items() if name != "num_classes"} | own
