"""The shape of a MaskGIT-VQGAN, and how it is read off a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from avarc_cli.layers.config_sources import ConfigSources, square_side
from avarc_cli.layers.conv_blocks import read_levels
from avarc_cli.layers.state_dict import shape_of

TITLE = "MaskGIT-VQGAN"

FIRST_CONV = "encoder.down.{level}.block.{block}.conv1.weight"


@dataclass(frozen=True, kw_only=True)
class MaskGITVQGANConfig:
    """Shape of a MaskGIT-VQGAN."""

    vocab_size: int  # V
    code_channels: int  # Z, channels of the latents and codes
    ch: int  # channels of the level with the most pixels
    ch_mult: tuple[int, ...]  # channels of each level as a multiple of `ch`
    side: int  # g, rows and columns of tokens
    blocks: int = 2  # residual blocks of a level

    @property
    def downsampling(self) -> int:
        """Pixels a side of one token."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.side * self.downsampling


def read_config(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> MaskGITVQGANConfig:
    """The shape of the tokenizer that these tensors make up.

    They do not tell the size of the images: it is stated as "image_size" or "resolution" (the reference's name),
    pixels, or as the layout of the tokens.

    Raises: CheckpointError when the tensors are no MaskGIT-VQGAN, or the size is unknown or does not fit.
    """
    ch, ch_mult, blocks = read_levels(tensors, FIRST_CONV, source=source, expected=TITLE)
    vocab_size, code_channels = shape_of(tensors, "quantize.embedding.weight", 2, source=source, expected=TITLE)
    return MaskGITVQGANConfig(
        vocab_size=vocab_size,
        code_channels=code_channels,
        ch=ch,
        ch_mult=ch_mult,
        side=square_side(stated, 2 ** (len(ch_mult) - 1), source, TITLE, "resolution"),
        blocks=blocks,
    )
