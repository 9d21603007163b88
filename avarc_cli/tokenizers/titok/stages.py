"""The two stages in which a TiTok is trained (arXiv:2406.07550, section 3.3).

First encoder, codes and decoder learn to predict the tokens of a MaskGIT-VQGAN, the teacher. Then that tokenizer's
decoder is put behind them, and what decodes is trained on pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from avarc_cli.errors import UsageError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import build
from avarc_cli.tokenizers.maskgit_vqgan.network import MaskGITVQGAN
from avarc_cli.tokenizers.titok.config import (
    HEAD_WIDTH,
    PREDICTS,
    TITLE,
    TiTokConfig,
    TransformerConfig,
    is_first_stage,
    read_config,
)
from avarc_cli.tokenizers.titok.network import Codebook, TiTok

Network = TypeVar("Network", bound=TiTok)


def new_config(*, predicted: int | None, patch: int, side: int, **shape: Any) -> TiTokConfig:
    """The shape of a TiTok without a pixel decoder.

    Args:
        predicted: codes of a MaskGIT-VQGAN that it predicts in the first of two stages; None draws pixels.
        shape: num_tokens, vocab_size (0 for a VAE), code_channels, width and depth; and decoder_width and
            decoder_depth, where the decoder's are not the same.
    """
    width, depth = shape["width"], shape["depth"]
    encoder = _transformer(width, depth)
    decoder = _transformer(shape.get("decoder_width") or width, shape.get("decoder_depth") or depth)
    return TiTokConfig(
        num_tokens=shape["num_tokens"],
        vocab_size=shape["vocab_size"],
        code_channels=shape["code_channels"],
        patch=patch,
        side=side,
        encoder=encoder,
        decoder=decoder,
        l2_norm=predicted is not None,
        predicted=predicted,
    )


def initialize(network: Network) -> Network:
    """The same network with the first codes of a new one; its modules have initialized the rest."""
    if isinstance(network.quantize, Codebook):
        bound = 1 / network.config.vocab_size
        nn.init.uniform_(network.quantize.embedding.weight, -bound, bound)
    return network


def _transformer(width: int, depth: int) -> TransformerConfig:
    return TransformerConfig(width=width, depth=depth, heads=width // HEAD_WIDTH)


def first_stage(teacher: MaskGITVQGAN, patch: int | None, **shape: Any) -> TiTok:
    """An initialized TiTok to predict the teacher's tokens; its patches are the cells of the teacher's grid.

    Args:
        patch: side of a patch in pixels, if the user names it. shape: as for `new_config`.
    Raises: UsageError for other patches.
    """
    pixels = teacher.config.downsampling
    if patch not in (None, pixels):
        raise UsageError(
            f"patches of {patch} pixels do not fit the tokenizer whose codes are predicted",
            f"one of its tokens covers {pixels} x {pixels} pixels",
            f"leave out --patch, or write --patch {pixels}",
        )
    config = new_config(predicted=teacher.vocab_size, patch=pixels, side=teacher.config.side, **shape)
    return initialize(TiTok(config))


def second_stage(first: Mapping[str, Tensor], stated: ConfigSources, source: str, teacher: MaskGITVQGAN) -> TiTok:
    """The TiTok of a first stage with the teacher's codes and decoder behind it; only what decodes has gradients.

    Raises: UsageError when the checkpoint is of no first stage, or not of this teacher's tokens; as `build`.
    """
    if not is_first_stage(first):
        whose = "it draws pixels already" if "latent_tokens" in first else f"its tensors are not those of a {TITLE}"
        raise UsageError(
            f"{source} is not the first stage of a {TITLE}", whose, "pass what avarc train titok --codes-of wrote"
        )
    decoder = {f"pixel_{key}": tensor for key, tensor in teacher.state_dict().items() if key.startswith(_DECODES)}
    if len(first[PREDICTS]) != teacher.vocab_size:
        raise _other_teacher(source, f"it predicts {len(first[PREDICTS])} codes, and there are {teacher.vocab_size}")
    tensors = {key: tensor.cpu().clone() for key, tensor in {**first, **decoder}.items()}  # they will change
    config = read_config(tensors, stated, source)
    if (config.side, config.patch) != (teacher.config.side, teacher.config.downsampling):
        theirs = f"{teacher.config.side} x {teacher.config.side} of {teacher.config.downsampling} pixels"
        raise _other_teacher(
            source,
            f"it has {config.side} x {config.side} patches of {config.patch} pixels, and the tokens are {theirs}",
        )
    network = build(lambda: TiTok(config), tensors, source=source, expected=TITLE)
    for part in (network.decoder, network.pixel_quantize, network.pixel_decoder):
        if part is not None:
            part.requires_grad_(True)
    return network


_DECODES = ("quantize.", "decoder.")


def _other_teacher(source: str, why: str) -> UsageError:
    return UsageError(f"{source} predicts the codes of another tokenizer", why, "name that one with --codes-of")
