"""The shape of a TiTok, and how it is read off a checkpoint's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.config_sources import ConfigSources, check_shape
from avarc_cli.layers.state_dict import shape_of
from avarc_cli.layout import TokenLayout
from avarc_cli.tokenizers.maskgit_vqgan.config import MaskGITVQGANConfig

TITLE = "TiTok"
HEAD_WIDTH = 64  # channels of an attention head in every published TiTok
PREDICTS = "decoder.ffn.2.weight"  # in models whose decoder predicts codes
PIXEL_CODES = "pixel_quantize.embedding.weight"  # of the codes that it predicts
L2_NORM = "model.vq_model.use_l2_norm"  # where the configurations of the published files state it


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of the encoder's or decoder's vision transformer."""

    width: int  # C
    depth: int  # layers
    heads: int

    @property
    def hidden(self) -> int:
        """Hidden width of the MLPs."""
        return 4 * self.width


@dataclass(frozen=True, kw_only=True)
class TiTokConfig:
    """Shape of a TiTok."""

    num_tokens: int  # L, latent tokens of an image
    vocab_size: int  # V
    code_channels: int  # Z, channels of the latents and codes
    patch: int  # p, pixels a side of a patch
    side: int  # g, rows and columns of patches
    encoder: TransformerConfig
    decoder: TransformerConfig
    l2_norm: bool
    """Whether latents and codes are compared, and codes looked up, with unit length."""
    predicted: int | None = None
    """U, codes of the MaskGIT-VQGAN that the decoder of a two-stage model predicts; None where it draws pixels."""
    pixel_decoder: MaskGITVQGANConfig | None = None
    """Of that MaskGIT-VQGAN, in a two-stage model after its second stage."""
    inferred: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.side * self.patch


def read_config(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> TiTokConfig:
    """The shape of the tokenizer that these tensors make up.

    They do not tell whether codes have unit length. Where no file states it as "use_l2_norm", those of a two-stage
    model do, as in all published ones.

    Raises: CheckpointError when the tensors are no TiTok with a decoder for its pixels, or contradict what is stated.
    """

    def shape(key: str, dimensions: int) -> torch.Size:
        return shape_of(tensors, key, dimensions, source=source, expected=TITLE)

    vocab_size, code_channels = shape("quantize.embedding.weight", 2)
    num_tokens, _ = shape("latent_tokens", 2)
    *_, patch = shape("encoder.patch_embed.weight", 4)
    cells = shape("encoder.positional_embedding", 2)[0] - 1
    side = math.isqrt(max(cells, 0))
    if side == 0 or side * side != cells:
        raise CheckpointError(f"{source} does not fit a {TITLE}", f"its {cells} patches fill no square")
    pixel_decoder = _read_pixel_decoder(tensors, side, source)
    found = stated.find("use_l2_norm", L2_NORM)
    if found is not None and str(found[0]).lower() not in ("true", "false"):
        raise CheckpointError(
            f"'use_l2_norm' in {found[1]} cannot be read", f"it is {found[0]!r}", "write true or false there"
        )
    l2_norm = pixel_decoder is not None if found is None else str(found[0]).lower() == "true"
    kind = "two-stage" if pixel_decoder else "single-stage"
    config = TiTokConfig(
        num_tokens=num_tokens,
        vocab_size=vocab_size,
        code_channels=code_channels,
        patch=patch,
        side=side,
        encoder=_read_transformer(tensors, "encoder", source),
        decoder=_read_transformer(tensors, "decoder", source),
        l2_norm=l2_norm,
        predicted=pixel_decoder.vocab_size if pixel_decoder else None,
        pixel_decoder=pixel_decoder,
        inferred={} if found else {"use_l2_norm": f"{l2_norm}, as in the published {kind} models"},
    )
    numbers = {
        "model.vq_model.codebook_size": vocab_size,
        "model.vq_model.token_size": code_channels,
        "model.vq_model.num_latent_tokens": num_tokens,
        "dataset.preprocessing.crop_size": config.image_size,
    }
    check_shape(stated, numbers, TokenLayout.sequence(num_tokens), source)
    return config


def _read_transformer(tensors: Mapping[str, Tensor], part: str, source: str) -> TransformerConfig:
    width = shape_of(tensors, f"{part}.class_embedding", 2, source=source, expected=TITLE)[1]
    depth = 0
    while f"{part}.transformer.{depth}.ln_1.weight" in tensors:
        depth += 1
    if depth == 0 or width % HEAD_WIDTH:
        raise CheckpointError(
            f"{source} does not fit a {TITLE}",
            f"its {part} has {depth} layers of {width} channels; expected is a multiple of {HEAD_WIDTH} channels",
        )
    return TransformerConfig(width=width, depth=depth, heads=width // HEAD_WIDTH)


def is_first_stage(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are of a TiTok that predicts codes and has no decoder for their pixels."""
    return PREDICTS in tensors and PIXEL_CODES not in tensors


def _read_pixel_decoder(tensors: Mapping[str, Tensor], side: int, source: str) -> MaskGITVQGANConfig | None:
    """The MaskGIT-VQGAN whose decoder draws the pixels; None for a single-stage model."""
    if PREDICTS not in tensors:
        return None
    if is_first_stage(tensors):
        raise CheckpointError(
            f"{source} is only the first stage of a {TITLE}",
            "it predicts the codes of a MaskGIT-VQGAN, and has no decoder for pixels",
            "train the second stage (avarc train titok --start-from), or pass its checkpoint",
        )
    vocab_size, channels = shape_of(tensors, PIXEL_CODES, 2, source=source, expected=TITLE)
    widths: list[int] = []
    while (key := f"pixel_decoder.up.{len(widths)}.block.0.conv1.weight") in tensors:
        widths.append(shape_of(tensors, key, 4, source=source, expected=TITLE)[0])
    if not widths or any(width % widths[0] for width in widths):
        raise CheckpointError(f"{source} does not fit a {TITLE}", f"its pixel decoder has levels of {widths} channels")
    blocks = sum(f"pixel_decoder.up.0.block.{j}.conv1.weight" in tensors for j in range(len(tensors)))
    return MaskGITVQGANConfig(
        vocab_size=vocab_size,
        code_channels=channels,
        ch=widths[0],
        ch_mult=tuple(width // widths[0] for width in widths),
        side=side,
        blocks=blocks,
    )
