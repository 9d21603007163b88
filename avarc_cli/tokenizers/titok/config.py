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
# Where the configurations of the published files state these:
L2_NORM, QUANTIZE_MODE = "model.vq_model.use_l2_norm", "model.vq_model.quantize_mode"


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
    vocab_size: int  # V; 0 for a VAE, whose tokens are the latents themselves
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
    def is_vae(self) -> bool:
        """Whether tokens are vectors of Z channels, rather than codes."""
        return self.vocab_size == 0

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.side * self.patch


def read_config(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> TiTokConfig:
    """The shape of the tokenizer that these tensors make up.

    Without a codebook it is a VAE. The tensors do not tell whether codes have unit length: where no file states it as
    "use_l2_norm", those of a two-stage model do, as in all published ones.

    Raises: CheckpointError when the tensors are no TiTok with a decoder for its pixels, or contradict what is stated.
    """

    def shape(key: str, dimensions: int) -> torch.Size:
        return shape_of(tensors, key, dimensions, source=source, expected=TITLE)

    vocab_size = _read_vocab_size(tensors, stated, source)
    code_channels = shape("decoder.decoder_embed.weight", 2)[1]
    num_tokens, _ = shape("latent_tokens", 2)
    *_, patch = shape("encoder.patch_embed.weight", 4)
    cells = shape("encoder.positional_embedding", 2)[0] - 1
    side = math.isqrt(max(cells, 0))
    if side == 0 or side * side != cells:
        raise CheckpointError(f"{source} does not fit a {TITLE}", f"its {cells} patches fill no square")
    pixel_decoder = _read_pixel_decoder(tensors, side, source)
    l2_norm, inferred = (False, {}) if vocab_size == 0 else _read_l2_norm(stated, pixel_decoder is not None)
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
        inferred=inferred,
    )
    numbers = {
        "model.vq_model.token_size": code_channels,
        "model.vq_model.num_latent_tokens": num_tokens,
        "dataset.preprocessing.crop_size": config.image_size,
    } | ({"model.vq_model.codebook_size": vocab_size} if vocab_size else {})
    check_shape(stated, numbers, TokenLayout.sequence(num_tokens), source)
    return config


def _read_vocab_size(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> int:
    """Number of codes; 0 for a VAE. Raises: CheckpointError where files state the other kind."""
    has_codebook, found = "quantize.embedding.weight" in tensors, stated.find("quantize_mode", QUANTIZE_MODE)
    there = "a codebook" if has_codebook else "no codebook"
    if found is not None and found[0] != ("vq" if has_codebook else "vae"):
        raise CheckpointError(
            f"{source} contradicts its configuration",
            f"'quantize_mode' in {found[1]} is {found[0]!r}, and the tensors have {there}",
            "correct the configuration, or pass the file that it belongs to",
        )
    if not has_codebook:
        return 0
    return shape_of(tensors, "quantize.embedding.weight", 2, source=source, expected=TITLE)[0]


def _read_l2_norm(stated: ConfigSources, is_two_stage: bool) -> tuple[bool, dict[str, str]]:
    """Whether codes have unit length, and what of it was inferred. Raises: CheckpointError for any other value."""
    found = stated.find("use_l2_norm", L2_NORM)
    if found is None:
        kind = "two-stage" if is_two_stage else "single-stage"
        return is_two_stage, {"use_l2_norm": f"{is_two_stage}, as in the published {kind} models"}
    if str(found[0]).lower() not in ("true", "false"):
        raise CheckpointError(
            f"'use_l2_norm' in {found[1]} cannot be read", f"it is {found[0]!r}", "write true or false there"
        )
    return str(found[0]).lower() == "true", {}


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
