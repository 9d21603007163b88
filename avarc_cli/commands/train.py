"""avarc train: a tokenizer and a generator of your own, from an image folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from avarc_cli import console, processes
from avarc_cli.commands import _images
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _training as common
from avarc_cli.commands._groups import Command, with_option_groups
from avarc_cli.commands.train_captions import llamagen_t2i, text_encoder
from avarc_cli.commands.train_classifier import classifier
from avarc_cli.commands.train_maskgen import maskgen
from avarc_cli.commands.train_tatitok import tatitok
from avarc_cli.commands.train_titok import titok
from avarc_cli.settings import (
    check_contrast,
    check_heads,
    check_levels,
    check_tokenizer_shape,
    check_width,
)

app = typer.Typer(
    help="Train a tokenizer or a generator on an image folder.\n\nExample: avarc train tokenizer photos/ --out vq.st",
    no_args_is_help=True,
)


@app.callback()
def _processes() -> None:
    processes.quiet_torch()
    console.configure(silent=not processes.is_first())  # torchrun starts several, of which one speaks


@app.command(cls=Command)
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
    device: opt.DeviceOpt = "auto",
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: common.RecipeOptions,
    loss: common.LossOptions,
    codes: common.ScaleOptions,
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
    }
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


@app.command(cls=Command)
@with_option_groups
def vq(
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    image_size: common.ImageSizeOpt = 64,
    vocab: common.VocabularyOpt = 512,
    channels: common.CodeChannelsOpt = 8,
    width: common.WidthOpt = 64,
    multipliers: common.MultipliersOpt = "1,2,2,4",
    blocks: common.BlocksOpt = 2,
    device: opt.DeviceOpt = "auto",
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: common.RecipeOptions,
    loss: common.LossOptions,
    codes: common.CodeOptions,
) -> None:
    """Train a VQGAN's network, the tokenizer of LlamaGen and RandAR.

    Example: avarc train vq photos/ --image-size 64 --out vq.safetensors
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
        family="llamagen-vq",
        image_size=image_size,
        device=device,
        overwrite=overwrite,
    )


@app.command(name="maskgit-vq", cls=Command)
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
    training: common.RecipeOptions,
    loss: common.LossOptions,
    codes: common.CodeOptions,
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


app.command(cls=Command)(classifier)
app.command(cls=Command)(titok)
app.command(cls=Command)(tatitok)
app.command(name="text-encoder", cls=Command)(text_encoder)
app.command(name="llamagen-t2i", cls=Command)(llamagen_t2i)
app.command(cls=Command)(maskgen)


@app.command(cls=Command)
@with_option_groups
def var(
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    reads: common.TokenizerOptions,
    depth: common.DepthOpt = 8,
    width: Annotated[int, opt.model_option("--width", min=64, help="Channels, a multiple of 64.")] = 512,
    shared_aln: Annotated[
        bool, opt.model_option("--shared-aln", help="One class modulation for all blocks: fewer parameters.")
    ] = False,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: common.RecipeOptions,
    class_dropout: common.DropoutOpt = 0.1,
) -> None:
    """Train a VAR on the tokens of a folder with one sub-folder a class.

    Example: avarc train var photos/ --tokenizer tokenizer.safetensors --out var.safetensors
    """
    check_width(width, "a VAR")
    shape = {"depth": depth, "width": width, "shared_aln": shared_aln}
    common.train_generator(
        data, out, shape, training, reads, family="var", class_dropout=class_dropout, overwrite=overwrite
    )


@app.command(cls=Command)
@with_option_groups
def llamagen(
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    reads: common.TokenizerOptions,
    shape: common.TransformerOptions,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: common.RecipeOptions,
    class_dropout: common.DropoutOpt = 0.1,
) -> None:
    """Train a LlamaGen on the tokens of a folder with one sub-folder a class.

    Example: avarc train llamagen photos/ --tokenizer vq.safetensors --out llamagen.safetensors
    """
    check_heads(shape.width, shape.heads, "a LlamaGen")
    common.train_generator(
        data, out, vars(shape), training, reads, family="llamagen", class_dropout=class_dropout, overwrite=overwrite
    )


@app.command(cls=Command)
@with_option_groups
def randar(
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    reads: common.TokenizerOptions,
    shape: common.TransformerOptions,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: common.RecipeOptions,
    class_dropout: common.DropoutOpt = 0.1,
) -> None:
    """Train a RandAR, which models the tokens in any order, each image in a new random one at every step.

    Example: avarc train randar photos/ --tokenizer vq.safetensors --out randar.safetensors
    """
    check_heads(shape.width, shape.heads, "a RandAR")
    common.train_generator(
        data, out, vars(shape), training, reads, family="randar", class_dropout=class_dropout, overwrite=overwrite
    )


@app.command(cls=Command)
@with_option_groups
def rar(
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    reads: common.TokenizerOptions,
    shape: common.TransformerOptions,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: common.RecipeOptions,
    class_dropout: common.DropoutOpt = 0.1,
) -> None:
    """Train a RAR on the tokens of a folder with one sub-folder a class: in random orders, in the end in raster order.

    Example: avarc train rar photos/ --tokenizer vq.safetensors --out rar.safetensors
    """
    common.train_generator(
        data, out, vars(shape), training, reads, family="rar", class_dropout=class_dropout, overwrite=overwrite
    )


@app.command(cls=Command)
@with_option_groups
def maskgit(
    data: opt.DataArg,
    *,
    out: common.OutOpt,
    reads: common.TokenizerOptions,
    shape: common.TransformerOptions,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: common.RecipeOptions,
    class_dropout: common.DropoutOpt = 0.1,
) -> None:
    """Train a MaskGIT, which predicts hidden tokens from visible ones, as a UViT.

    Example: avarc train maskgit photos/ --tokenizer titok.safetensors --out maskgit.safetensors
    """
    check_heads(shape.width, shape.heads, "a MaskGIT")
    common.train_generator(
        data, out, vars(shape), training, reads, family="maskgit", class_dropout=class_dropout, overwrite=overwrite
    )


@app.command(cls=Command)
@with_option_groups
def cca(
    data: opt.DataArg,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Weights to write (safetensors), or with --rank a folder as PEFT's.")
    ],
    rank: Annotated[
        int, opt.training_option("--rank", min=0, help="Train LoRA of this rank; 0 trains every weight.")
    ] = 0,
    beta: Annotated[
        float, opt.training_option("--beta", help="How fast a gain in log-likelihood (nats) saturates.")
    ] = 0.02,
    weight: Annotated[
        float, opt.training_option("--weight", help="Weight lambda of the pairs with another class.")
    ] = 1.0,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    model: groups.WeightsOptions,
    training: common.FineTuningOptions,
    class_dropout: common.DropoutOpt = 0.1,
) -> None:
    """Fine-tune a generator to tell classes apart (condition contrastive alignment), whole or as a LoRA adapter.

    Example: avarc train cca photos/ --model var-d16 --rank 16 --out adapter/
    """
    check_contrast(beta, weight, class_dropout)
    with common.reserved(out, overwrite, model.model, model.tokenizer, folder=rank > 0):
        images, held_out = training.open(data)
        from avarc_cli.loading import load_model  # imports torch: only now, after all that may be wrong
        from avarc_cli.train.cca import Contrast, align

        contrast = Contrast(beta=beta, weight=weight, class_dropout=class_dropout)
        loaded = load_model(model.fetch(), unbound=True)  # a model of captions is refused below, with the reason
        opt.note_inferred(loaded)
        recipe = replace(training.recipe(), weight_decay=0.0)
        _images.note_numbers(images.class_names, loaded.classes)
        with common.progress("aligning", recipe.steps) as progress:
            align(
                images,
                out,
                loaded,
                recipe,
                contrast=contrast,
                rank=rank,
                augment=training.augmentation(),
                held_out=held_out,
                run=training.run(out),
                progress=progress,
                say=console.warn,
            )
    common.show(out, training)
