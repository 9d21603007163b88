"""avarc train: a tokenizer and a generator of your own, from an image folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights

if TYPE_CHECKING:
    from avarc_cli.train.loop import Progress

app = typer.Typer(
    help="Train a tokenizer or a generator on an image folder.\n\nExample: avarc train tokenizer photos/ --out vq.st",
    no_args_is_help=True,
)

OutOpt = Annotated[Path, typer.Option("--out", "-o", help="Weights to write (safetensors); OUT.ckpt resumes training.")]
StepsOpt = Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.")]
BatchOpt = Annotated[int, typer.Option("--batch-size", min=1, help="Images a step.")]
RateOpt = Annotated[float, typer.Option("--lr", help="Peak learning rate.")]
DropoutOpt = Annotated[float, typer.Option("--class-dropout", help="Share of images trained on as unconditional.")]
AugmentOpt = Annotated[
    str,
    typer.Option("--augment", help="crop (random crop), affine (rotate, scale, shear, shift: small objects) or none."),
]
FlipOpt = Annotated[bool, typer.Option("--flip", help="Mirror half of the images.")]


@app.command()
def tokenizer(
    data: opt.DataArg,
    out: OutOpt,
    image_size: Annotated[int, typer.Option("--image-size", min=1, help="Side of the images in pixels.")] = 64,
    patch_nums: Annotated[
        str,
        typer.Option("--patch-nums", help="Sides of the scales; the last times the downsampling is the image size."),
    ] = "1,2,3,4,6,8",
    vocab: Annotated[int, typer.Option("--vocab", min=1, help="Codebook entries.")] = 512,
    channels: Annotated[int, typer.Option("--channels", min=1, help="Latent channels.")] = 16,
    width: Annotated[int, typer.Option("--width", min=32, help="Channels of the first level, a multiple of 32.")] = 64,
    multipliers: Annotated[
        str,
        typer.Option("--multipliers", help="Width of each level in first widths; each level but one halves the side."),
    ] = "1,2,2,4",
    blocks: Annotated[int, typer.Option("--blocks", min=1, help="Residual blocks a level.")] = 2,
    steps: StepsOpt = 20_000,
    batch_size: BatchOpt = 32,
    lr: RateOpt = 3e-4,
    augment: AugmentOpt = "crop",
    flip: FlipOpt = False,
    seed: opt.SeedOpt = 0,
    device: opt.DeviceOpt = "auto",
    as_json: opt.JsonOpt = False,
) -> None:
    """Train a multi-scale VQ-VAE that turns images into tokens and back.

    Example: avarc train tokenizer photos/ --image-size 64 --out tokenizer.safetensors
    """
    from avarc_cli.data.datasets import open_images
    from avarc_cli.devices import pick_device
    from avarc_cli.train.images import Augment
    from avarc_cli.train.loop import Recipe
    from avarc_cli.train.tokenizer import train_tokenizer

    shape = {
        "vocab_size": vocab,
        "z_channels": channels,
        "ch": width,
        "ch_mult": opt.parse_numbers(multipliers, "--multipliers") or (),
        "patch_nums": opt.parse_numbers(patch_nums, "--patch-nums") or (),
        "blocks": blocks,
    }
    with _progress("training tokenizer", steps) as progress:
        train_tokenizer(
            open_images(data),
            out,
            shape,
            Recipe(steps=steps, batch_size=batch_size, lr=lr, seed=seed, weight_decay=0.01, betas=(0.9, 0.99)),
            image_size=image_size,
            augment=Augment(mode=augment, flip=flip),
            device=pick_device(device),
            progress=progress,
        )
    _show(out)


@app.command()
def var(
    data: opt.DataArg,
    out: OutOpt,
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="A tokenizer's name or file.")],
    depth: Annotated[int, typer.Option("--depth", min=1, help="Blocks.")] = 8,
    width: Annotated[int, typer.Option("--width", min=64, help="Channels, a multiple of 64.")] = 512,
    shared_aln: Annotated[
        bool, typer.Option("--shared-aln", help="One class modulation for all blocks: fewer parameters.")
    ] = False,
    steps: StepsOpt = 20_000,
    batch_size: BatchOpt = 32,
    lr: RateOpt = 3e-4,
    class_dropout: DropoutOpt = 0.1,
    augment: AugmentOpt = "crop",
    flip: FlipOpt = False,
    seed: opt.SeedOpt = 0,
    device: opt.DeviceOpt = "auto",
    yes: _weights.YesOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Train a VAR on the tokens of a folder with one sub-folder a class.

    Example: avarc train var photos/ --tokenizer tokenizer.safetensors --out var.safetensors
    """
    from avarc_cli.data.datasets import open_images
    from avarc_cli.loading import load_tokenizer
    from avarc_cli.train.generator import train_generator
    from avarc_cli.train.images import Augment
    from avarc_cli.train.loop import Recipe

    _weights.ensure(tokenizer, yes=yes)
    with _progress("training VAR", steps) as progress:
        train_generator(
            open_images(data),
            out,
            load_tokenizer(tokenizer, device=device),
            {"depth": depth, "width": width, "shared_aln": shared_aln},
            Recipe(steps=steps, batch_size=batch_size, lr=lr, seed=seed),
            augment=Augment(mode=augment, flip=flip),
            class_dropout=class_dropout,
            progress=progress,
        )
    _show(out)


@app.command()
def cca(
    data: opt.DataArg,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Weights to write (safetensors), or with --rank a folder as PEFT's.")
    ],
    model: opt.ModelOpt = "digits",
    tokenizer: opt.TokenizerOpt = None,
    rank: Annotated[int, typer.Option("--rank", min=0, help="Train LoRA of this rank; 0 trains every weight.")] = 0,
    beta: Annotated[float, typer.Option("--beta", help="How fast a gain in log-likelihood (nats) saturates.")] = 0.02,
    weight: Annotated[float, typer.Option("--weight", help="Weight lambda of the pairs with another class.")] = 1.0,
    class_dropout: DropoutOpt = 0.1,
    steps: StepsOpt = 500,
    batch_size: BatchOpt = 32,
    lr: RateOpt = 2e-5,
    augment: AugmentOpt = "crop",
    flip: FlipOpt = False,
    seed: opt.SeedOpt = 0,
    device: opt.DeviceOpt = "auto",
    yes: _weights.YesOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Fine-tune a generator to tell classes apart (condition contrastive alignment), whole or as a LoRA adapter.

    Example: avarc train cca photos/ --model var-d16 --rank 16 --out adapter/
    """
    from avarc_cli.data.datasets import open_images
    from avarc_cli.loading import load_model
    from avarc_cli.train.cca import Contrast, align
    from avarc_cli.train.images import Augment
    from avarc_cli.train.loop import Recipe

    contrast = Contrast(beta=beta, weight=weight, class_dropout=class_dropout)
    _weights.ensure(model, tokenizer, yes=yes)
    with _progress("aligning", steps) as progress:
        align(
            open_images(data),
            out,
            load_model(model, tokenizer, device=device),
            Recipe(steps=steps, batch_size=batch_size, lr=lr, seed=seed, weight_decay=0.0),
            contrast=contrast,
            rank=rank,
            augment=Augment(mode=augment, flip=flip),
            progress=progress,
        )
    _show(out)


@contextmanager
def _progress(description: str, steps: int) -> Iterator[Progress]:
    with console.progress(description, steps, unit="steps") as bar:
        yield lambda done, values: bar.update(done, note=" ".join(f"{name} {x:.4g}" for name, x in values.items()))


def _show(out: Path) -> None:
    console.result({"weights": out}, f"{out}: written", brief=str(out))
