"""The shape of a VQ-VAE, and how it is read off a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.config_sources import ConfigSources, square_sides
from avarc_cli.layers.conv_blocks import read_levels
from avarc_cli.layers.state_dict import shape_of

TITLE = "VQ-VAE (VAR tokenizer)"

FIRST_CONV = "encoder.down.{level}.block.{block}.conv1.weight"


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """Shape of a VQ-VAE."""

    vocab_size: int  # V
    z_channels: int  # Z
    ch: int  # channels of the level with the most pixels
    ch_mult: tuple[int, ...]  # channels of each level as a multiple of `ch`
    patch_nums: tuple[int, ...]  # p_1..p_K
    blocks: int = 2  # residual blocks of a level in the encoder; the decoder has one more
    inferred: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # see TokenizerNetwork

    @property
    def downsampling(self) -> int:
        """Pixels a side of one latent position."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that give p_K x p_K latents."""
        return self.patch_nums[-1] * self.downsampling


PUBLISHED = VQVAEConfig(  # vae_ch160v4096z32.pth, with the scales for 256 pixels
    vocab_size=4096, z_channels=32, ch=160, ch_mult=(1, 1, 2, 2, 4), patch_nums=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
)


def read_config(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> VQVAEConfig:
    """The shape of the VQ-VAE that these tensors make up.

    They do not tell the scales. Those are stated as "patch_nums" or "v_patch_nums" (the reference's names); for a
    network of the published shape, scales for 256-pixel images are inferred.

    Raises: CheckpointError when the tensors are no VQ-VAE, or the scales are unknown.
    """

    def shape(key: str, ndim: int) -> torch.Size:
        return shape_of(tensors, key, ndim, source=source, expected=TITLE)

    ch, ch_mult, blocks = read_levels(tensors, FIRST_CONV, source=source, expected=TITLE)
    vocab_size, z_channels = shape("quantize.embedding.weight", 2)
    config = VQVAEConfig(
        vocab_size=vocab_size,
        z_channels=z_channels,
        ch=ch,
        ch_mult=ch_mult,
        patch_nums=(),
        blocks=blocks,
    )
    scales, inferred = _scales(config, stated, source)
    return replace(config, patch_nums=scales, inferred=inferred)


def _scales(config: VQVAEConfig, stated: ConfigSources, source: str) -> tuple[tuple[int, ...], dict[str, str]]:
    """The scales, and what was inferred about them."""
    layout = stated.layout("patch_nums", "v_patch_nums")
    if layout is not None:
        return square_sides(layout, source, TITLE), {}
    if replace(config, patch_nums=PUBLISHED.patch_nums) != PUBLISHED:
        raise CheckpointError(
            f"the scales of {source} are unknown",
            "a VQ-VAE's tensors do not tell them, and no published one has this shape",
            "add --patch-nums 1,2,3,4 with the sides of its scales, or --tokenizer-config FILE.json",
        )
    text = ",".join(map(str, PUBLISHED.patch_nums))
    return PUBLISHED.patch_nums, {"scales": f"{text}: those of the published 256-pixel models; the file does not tell"}
