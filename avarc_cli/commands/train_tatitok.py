"""avarc train tatitok: a TiTok whose decoder reads captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from avarc_cli.commands import _options as opt
from avarc_cli.commands import _training as common
from avarc_cli.commands import _weights
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.commands._loss_options import CodeOptions, LossOptions
from avarc_cli.commands._recipe_options import TokenizerRecipeOptions
from avarc_cli.commands.train_captions import CaptionsOpt, EncoderOpt, checked, encoded
from avarc_cli.commands.train_titok import ShapeOptions, VaeOpt, check_vae
from avarc_cli.settings import check_device, check_patch


@dataclass(frozen=True, kw_only=True)
class RevivedCodeOptions(CodeOptions):
    reanchor: Annotated[
        bool,
        opt.training_option("--reanchor/--no-reanchor", help="Move rarely used codes towards latents of every batch."),
    ] = True


@dataclass(frozen=True, kw_only=True)
class _ShapeOptions(ShapeOptions):
    channels: common.CodeChannelsOpt = 16


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
    shape: _ShapeOptions,
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
    shape.check("a TA-TiTok")
    check_patch(image_size, shape.patch)
    check_vae(context, vae)
    check_device(device)
    chosen = checked(captions, text_encoder)
    with common.reserved(out, overwrite):
        images, held_out = training.open(data)
        _weights.ensure_encoder(text_encoder, yes=yes)
        from avarc_cli.devices import pick_device  # imports torch: only now, after all that may be wrong

        on = pick_device(device)
        given, text = encoded(chosen, images, text_encoder, on)
        common.train_opened_tokenizer(
            images,
            held_out,
            out,
            {"text": text, **shape.of_network(vae=vae)},
            training,
            loss,
            codes,
            family="tatitok",
            image_size=image_size,
            device=on,
            captions=given,
        )
    common.show(out, training)
