"""avarc train tatitok: a TiTok whose decoder reads captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from avarc_cli.commands import _options as opt
from avarc_cli.commands import _training as common
from avarc_cli.commands import _weights
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.commands._loss_options import CodeOptions, LossOptions
from avarc_cli.commands._recipe_options import TokenizerRecipeOptions
from avarc_cli.commands.train_captions import CaptionsOpt, EncoderOpt, checked, encoded
from avarc_cli.commands.train_titok import (
    DecoderDepthOpt,
    DecoderWidthOpt,
    PatchOpt,
    TokensOpt,
    VaeOpt,
    WidthOpt,
    check_vae,
)
from avarc_cli.settings import check_device, check_patch, check_width


@dataclass(frozen=True, kw_only=True)
class RevivedCodeOptions(CodeOptions):
    reanchor: Annotated[
        bool,
        opt.training_option("--reanchor/--no-reanchor", help="Move rarely used codes towards latents of every batch."),
    ] = True


@with_option_groups
def tatitok(
    context: typer.Context,
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    captions: CaptionsOpt,
    text_encoder: EncoderOpt = "clip-vit-l-14-336",
    vae: VaeOpt = False,
    image_size: common.ImageSizeOpt = 64,
    patch: PatchOpt = 8,
    tokens: TokensOpt = 32,
    vocab: common.VocabularyOpt = 512,
    channels: common.CodeChannelsOpt = 16,
    width: WidthOpt = 256,
    depth: common.DepthOpt = 6,
    decoder_width: DecoderWidthOpt = None,
    decoder_depth: DecoderDepthOpt = None,
    device: opt.DeviceOpt = "auto",
    yes: opt.YesOpt = False,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: TokenizerRecipeOptions,
    loss: LossOptions,
    codes: RevivedCodeOptions,
) -> None:
    """Train a TA-TiTok, a TiTok whose decoder reads a caption beside the tokens.

    Tokens are codes, or with --vae continuous. DATA has one sub-folder a class; at every step, an image has one of the
    captions of its class, drawn at random.

    Example: avarc train tatitok photos/ --captions captions.json --out tatitok.safetensors
    """
    check_width(width, "a TA-TiTok")
    check_width(decoder_width or width, "a TA-TiTok's decoder")
    check_patch(image_size, patch)
    check_vae(context, vae)
    check_device(device)
    chosen = checked(captions, text_encoder)
    with common.reserved(out, overwrite):
        images, held_out = training.open(data)
        _weights.ensure_encoder(text_encoder, yes=yes)
        from avarc_cli.devices import pick_device  # imports torch: only now, after all that may be wrong

        on = pick_device(device)
        given, text = encoded(chosen, images, text_encoder, on)
        shape: dict[str, Any] = {
            "text": text,
            "patch": patch,
            "num_tokens": tokens,
            "vocab_size": 0 if vae else vocab,
            "code_channels": channels,
            "width": width,
            "depth": depth,
            "decoder_width": decoder_width,
            "decoder_depth": decoder_depth,
        }
        common.train_opened_tokenizer(
            images,
            held_out,
            out,
            shape,
            training,
            loss,
            codes,
            family="tatitok",
            image_size=image_size,
            device=on,
            captions=given,
        )
    common.show(out, training)
