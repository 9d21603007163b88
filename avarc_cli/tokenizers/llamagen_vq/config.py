"""The shape of a LlamaGen tokenizer, and how it is read off a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from avarc_cli.layers.config_sources import ConfigSources, square_side
from avarc_cli.layers.conv_blocks import read_levels
from avarc_cli.layers.state_dict import shape_of

TITLE = "LlamaGen tokenizer"

FIRST_CONV = "encoder.conv_blocks.{level}.res.{block}.conv1.weight"


@dataclass(frozen=True, kw_only=True)
class LlamaGenVQConfig:
    """Shape of a LlamaGen tokenizer."""

    vocab_size: int  # V
    code_channels: int  # Z, channels of the latents and codes
    z_channels: int  # between encoder and latents
    ch: int  # channels of the level with the most pixels
    ch_mult: tuple[int, ...]  # channels of each level as a multiple of `ch`
    side: int  # g, rows and columns of tokens
    blocks: int = 2  # residual blocks of a level in the encoder; the decoder has one more

    @property
    def downsampling(self) -> int:
        """Pixels a side of one token."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.side * self.downsampling


def read_config(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> LlamaGenVQConfig:
    """The shape of the tokenizer that these tensors make up.

    The network is convolutional, so they do not tell the size of the images: it is stated as "image_size", pixels, or
    as the layout of the tokens.

    Raises: CheckpointError when the tensors are no LlamaGen tokenizer, or the size is unknown or no multiple of the
        downsampling.
    """

    def shape(key: str, ndim: int) -> torch.Size:
        return shape_of(tensors, key, ndim, source=source, expected=TITLE)

    ch, ch_mult, blocks = read_levels(tensors, FIRST_CONV, source=source, expected=TITLE)
    vocab_size, code_channels = shape("quantize.embedding.weight", 2)
    return LlamaGenVQConfig(
        vocab_size=vocab_size,
        code_channels=code_channels,
        z_channels=shape("quant_conv.weight", 4)[1],
        ch=ch,
        ch_mult=ch_mult,
        side=square_side(stated, 2 ** (len(ch_mult) - 1), source, TITLE),
        blocks=blocks,
    )
