"""The shape of a LlamaGen tokenizer, and how it is read off a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.config_sources import ConfigSources
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
        side=_side(stated, 2 ** (len(ch_mult) - 1), source),
        blocks=blocks,
    )


def _side(stated: ConfigSources, downsampling: int, source: str) -> int:
    """Rows of tokens of an image."""
    pixels = stated.whole_number("image_size")
    if pixels is not None and pixels % downsampling:
        raise CheckpointError(
            f"{source} cannot read images of {pixels} pixels",
            f"a token covers {downsampling} x {downsampling} of them",
            f"name a multiple of {downsampling} with --image-size",
        )
    if pixels is not None:
        return pixels // downsampling
    layout = stated.layout()
    if layout is None:
        raise CheckpointError(
            f"the image size of {source} is unknown",
            f"a {TITLE} reads images of any multiple of {downsampling} pixels",
            "add --image-size 256, or the size that the generator was trained on",
        )
    if len(layout.grids) != 1 or layout.grids[0][0] != layout.grids[0][1]:
        raise CheckpointError(
            f"{source} cannot give {layout}", f"the tokens of a {TITLE} fill one square grid", "correct the layout"
        )
    return layout.grids[0][0]
