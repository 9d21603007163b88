"""avarc train: a tokenizer and a generator of your own, from an image folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from avarc_cli.train.loop import Progress

app = typer.Typer(
    help="Train a tokenizer or a generator on an image folder.\n\nExample: avarc train tokenizer photos/ --out vq.st",
    no_args_is_help=True,
)

OutOpt = Annotated[Path, typer.Option("--out", "-o", help="Weights to write (safetensors); OUT.ckpt resumes training.")]
StepsOpt = Annotated[int, typer.Option("--steps", help="Optimizer steps.")]
BatchOpt = Annotated[int, typer.Option("--batch-size", help="Images a step.")]
RateOpt = Annotated[float, typer.Option("--lr", help="Peak learning rate.")]
AugmentOpt = Annotated[
    str,
    typer.Option("--augment", help="crop (random crop), affine (rotate, scale, shear, shift: small objects) or none."),
]
FlipOpt = Annotated[bool, typer.Option("--flip", help="Mirror half of the images.")]


@app.command()
def tokenizer(
    data: opt.DataArg,
    out: OutOpt,
    image_size: Annotated[int, typer.Option("--image-size", help="Side of the images in pixels.")] = 64,
    patch_nums: Annotated[
        str,
        typer.Option("--patch-nums", help="Sides of the scales; the last times the downsampling is the image size."),
    ] = "1,2,3,4,6,8",
    vocab: Annotated[int, typer.Option("--vocab", help="Codebook entries.")] = 512,
    channels: Annotated[int, typer.Option("--channels", help="Latent channels.")] = 16,
    width: Annotated[int, typer.Option("--width", help="Channels of the first level, a multiple of 32.")] = 64,
    multipliers: Annotated[
        str,
        typer.Option("--multipliers", help="Width of each level in first widths; each level but one halves the side."),
    ] = "1,2,2,4",
    blocks: Annotated[int, typer.Option("--blocks", help="Residual blocks a level.")] = 2,
    steps: StepsOpt = 20_000,
    batch_size: BatchOpt = 32,
    lr: RateOpt = 3e-4,
    augment: AugmentOpt = "crop",
    flip: FlipOpt = False,
    seed: opt.SeedOpt = 0,
) -> None:
    """Train a multi-scale VQ-VAE that turns images into tokens and back.

    Example: avarc train tokenizer photos/ --image-size 64 --out tokenizer.safetensors
    """
    from avarc_cli.data.datasets import open_images
    from avarc_cli.models.vqvae import VQVAEConfig
    from avarc_cli.train import save
    from avarc_cli.train.images import Augment, TrainingImages
    from avarc_cli.train.loop import Recipe
    from avarc_cli.train.tokenizer import train_tokenizer

    scales = opt.parse_numbers(patch_nums, "--patch-nums") or ()
    config = VQVAEConfig(
        vocab_size=vocab,
        z_channels=channels,
        ch=width,
        ch_mult=opt.parse_numbers(multipliers, "--multipliers") or (),
        patch_nums=scales,
        blocks=blocks,
    )
    if config.image_size != image_size or width % 32 or list(scales) != sorted(set(scales)):
        raise UsageError(
            f"scales {patch_nums}, multipliers {multipliers}, width {width} do not fit {image_size}-pixel images",
            f"they are for {config.image_size} pixels ({scales[-1]} x {config.downsampling}); a width is 32, 64, ...",
            "scales increase, and the last times 2 for every multiplier but one gives the image size",
        )
    images = TrainingImages(open_images(data), image_size, Augment(mode=augment, flip=flip), seed=seed)
    recipe = Recipe(steps=steps, batch_size=batch_size, lr=lr, seed=seed, weight_decay=0.01, betas=(0.9, 0.99))
    with _progress("training tokenizer", steps, out) as progress:
        model = train_tokenizer(config, images, recipe, _checkpoint(out), progress)
    save.save_tokenizer(model, out, preprocess="resize-crop" if augment == "crop" else "fit")
    _finish(out)


@app.command()
def var(
    data: opt.DataArg,
    out: OutOpt,
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="A tokenizer's name or file.")],
    depth: Annotated[int, typer.Option("--depth", help="Blocks.")] = 8,
    width: Annotated[int, typer.Option("--width", help="Channels, a multiple of 64.")] = 512,
    shared_aln: Annotated[
        bool, typer.Option("--shared-aln", help="One class modulation for all blocks: fewer parameters.")
    ] = False,
    steps: StepsOpt = 20_000,
    batch_size: BatchOpt = 32,
    lr: RateOpt = 3e-4,
    class_dropout: Annotated[
        float, typer.Option("--class-dropout", help="Share of images trained on as unconditional.")
    ] = 0.1,
    augment: AugmentOpt = "crop",
    flip: FlipOpt = False,
    seed: opt.SeedOpt = 0,
) -> None:
    """Train a VAR on the tokens of a folder with one sub-folder a class.

    Example: avarc train var photos/ --tokenizer tokenizer.safetensors --out var.safetensors
    """
    from avarc_cli.data.datasets import open_images
    from avarc_cli.loading import load_tokenizer
    from avarc_cli.models.var import VARConfig
    from avarc_cli.train import save
    from avarc_cli.train.generator import train_var
    from avarc_cli.train.images import Augment, TrainingImages
    from avarc_cli.train.loop import Recipe

    chosen = open_images(data)
    if not chosen.class_names or (chosen.labels < 0).any():
        raise UsageError(
            "images without a class", "a class-conditional model needs one for each", "use class sub-folders"
        )
    if width % 64 or depth < 1 or not 0 <= class_dropout < 1:
        raise UsageError(
            f"depth {depth}, width {width}, class dropout {class_dropout}",
            "depth is at least 1, width a multiple of 64, class dropout in [0, 1)",
        )
    reader = load_tokenizer(tokenizer, device="cpu")
    config = VARConfig(
        depth=depth,
        width=width,
        heads=width // 64,
        num_classes=len(chosen.class_names),
        patch_nums=reader.patch_nums,
        vocab_size=reader.vocab_size,
        z_channels=reader.network.config.z_channels,
        shared_aln=shared_aln,
    )
    images = TrainingImages(chosen, reader.image_size, Augment(mode=augment, flip=flip), seed=seed)
    recipe = Recipe(steps=steps, batch_size=batch_size, lr=lr, seed=seed)
    with _progress("training VAR", steps, out) as progress:
        model = train_var(
            config, reader.network, images, recipe, _checkpoint(out), progress, class_dropout=class_dropout
        )
    save.save_var(model, out, class_names=chosen.class_names, tokenizer_sha256=reader.sha256)
    _finish(out)


def _checkpoint(out: Path) -> Path:
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(
            f"cannot write '{out}'", f"'{out.parent}' is no folder" if not out.is_dir() else "it is a folder"
        )
    return out.with_name(out.name + ".ckpt")


@contextmanager
def _progress(description: str, steps: int, out: Path) -> Iterator[Progress]:
    with console.progress(description, steps, unit="steps") as bar:

        def show(done: int, values: dict[str, float]) -> None:
            bar.update(done, note=" ".join(f"{name} {value:.4g}" for name, value in values.items()))

        try:
            yield show
        except KeyboardInterrupt:
            why = f"the last checkpoint is in '{_checkpoint(out)}'"
            raise Interrupted("training was interrupted", why, "run the same command again to go on") from None


def _finish(out: Path) -> None:
    _checkpoint(out).unlink(missing_ok=True)
    console.result({"weights": out}, f"{out}: written", brief=str(out))
