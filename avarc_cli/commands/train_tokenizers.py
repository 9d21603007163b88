"""avarc train tokenizer, vq and maskgit-vq: convolutional tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _training as common
from avarc_cli.commands import _weights
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.commands._loss_options import CodeOptions, LossOptions, ScaleOptions
from avarc_cli.commands._recipe_options import TokenizerRecipeOptions, VQVAERecipeOptions
from avarc_cli.settings import check_initialization, check_levels, check_tokenizer_shape
from avarc_cli.zoo import local_files
from avarc_cli.zoo.cards import check_weights, is_path, tokenizer_card

SHAPE = ("vocab", "channels", "width", "multipliers", "blocks")


@with_option_groups
def tokenizer(
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    image_size: common.ImageSizeOpt = 64,
    patch_nums: Annotated[
        str,
        opt.model_option(
            "--patch-nums", help="Sides of the scales; the last times the downsampling is the image size."
        ),
    ] = "1,2,3,4,6,8",
    vocab: common.VocabularyOpt = 512,
    channels: Annotated[int, opt.model_option("--channels", min=1, help="Latent channels.")] = 16,
    width: common.WidthOpt = 64,
    multipliers: common.MultipliersOpt = "1,2,2,4",
    blocks: common.BlocksOpt = 2,
    initialization: Annotated[
        str,
        opt.model_option(
            "--initialization",
            help="small, for small tokenizers, or published: as VAR's authors.",
            autocompletion=complete.one_of("small", "published"),
        ),
    ] = "small",
    device: opt.DeviceOpt = "auto",
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: VQVAERecipeOptions,
    loss: LossOptions,
    codes: ScaleOptions,
) -> None:
    """Train a multi-scale VQ-VAE, the tokenizer of a VAR, that turns images into tokens and back.

    Example: avarc train tokenizer photos/ --image-size 64 --out tokenizer.safetensors
    """
    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "z_channels": channels,
        "ch": width,
        "ch_mult": opt.parse_numbers(multipliers, "--multipliers") or (),
        "patch_nums": opt.parse_numbers(patch_nums, "--patch-nums") or (),
        "blocks": blocks,
        "initialization": initialization,
    }
    check_initialization(initialization)
    check_tokenizer_shape(image_size, shape["patch_nums"], shape["ch_mult"], width)
    common.train_tokenizer(
        data,
        out,
        shape,
        training,
        loss,
        codes,
        family="vqvae",
        image_size=image_size,
        device=device,
        overwrite=overwrite,
    )


@with_option_groups
def vq(
    context: typer.Context,
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    start_from: Annotated[
        str | None,
        opt.model_option(
            "--start-from",
            help="A VQGAN's name or file to begin with, of the shape that it has.",
            autocompletion=complete.tokenizers,
        ),
    ] = None,
    image_size: common.ImageSizeOpt = 64,
    vocab: common.VocabularyOpt = 512,
    channels: common.CodeChannelsOpt = 8,
    width: common.WidthOpt = 64,
    multipliers: common.MultipliersOpt = "1,2,2,4",
    blocks: common.BlocksOpt = 2,
    device: opt.DeviceOpt = "auto",
    yes: opt.YesOpt = False,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: TokenizerRecipeOptions,
    loss: LossOptions,
    codes: CodeOptions,
) -> None:
    """Train a VQGAN's network, the tokenizer of LlamaGen and RandAR.

    Example: avarc train vq photos/ --image-size 64 --out vq.safetensors
    """
    start, pixels = None, image_size if opt.is_given(context, "image_size") else None
    if start_from is not None:
        opt.check_not_given(context, SHAPE, "with --start-from", "the file has decided the shape")
        start = _start(start_from, yes=yes)
    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "code_channels": channels,
        "ch": width,
        "ch_mult": opt.parse_numbers(multipliers, "--multipliers") or (),
        "blocks": blocks,
    }
    check_levels(image_size, shape["ch_mult"], width)
    common.train_tokenizer(
        data,
        out,
        shape,
        training,
        loss,
        codes,
        family="llamagen-vq",
        image_size=image_size if start is None else pixels,
        device=device,
        overwrite=overwrite,
        start_from=start,
    )


def _start(name: str, *, yes: bool) -> Path:
    """The file that --start-from names; a published one is downloaded if the user agrees."""
    check_weights(name)
    if is_path(name):
        return Path(name)
    card = tokenizer_card(name)
    _weights.ensure(name, yes=yes)
    return local_files.require(card)


@with_option_groups
def maskgit_vq(
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    image_size: common.ImageSizeOpt = 64,
    vocab: common.VocabularyOpt = 512,
    channels: common.CodeChannelsOpt = 32,
    width: common.WidthOpt = 64,
    multipliers: common.MultipliersOpt = "1,2,2,4",
    blocks: common.BlocksOpt = 2,
    device: opt.DeviceOpt = "auto",
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: TokenizerRecipeOptions,
    loss: LossOptions,
    codes: CodeOptions,
) -> None:
    """Train a MaskGIT-VQGAN's network, the tokenizer of a RAR.

    Example: avarc train maskgit-vq photos/ --image-size 64 --out vq.safetensors
    """
    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "code_channels": channels,
        "ch": width,
        "ch_mult": opt.parse_numbers(multipliers, "--multipliers") or (),
        "blocks": blocks,
    }
    check_levels(image_size, shape["ch_mult"], width)
    common.train_tokenizer(
        data,
        out,
        shape,
        training,
        loss,
        codes,
        family="maskgit-vqgan",
        image_size=image_size,
        device=device,
        overwrite=overwrite,
    )
