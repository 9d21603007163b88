"""avarc train: a tokenizer and a generator of your own, from an image folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights
from avarc_cli.errors import UsageError

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
    from avarc_cli.loading import pick_device
    from avarc_cli.tokenizers.vqvae import VQVAEConfig
    from avarc_cli.train import save
    from avarc_cli.train.images import Augment, TrainingImages
    from avarc_cli.train.loop import Recipe
    from avarc_cli.train.tokenizer import train_tokenizer

    checkpoint = _checkpoint(out)
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
    place = pick_device(device)
    recipe = Recipe(steps=steps, batch_size=batch_size, lr=lr, seed=seed, weight_decay=0.01, betas=(0.9, 0.99))
    images = TrainingImages(open_images(data), image_size, Augment(mode=augment, flip=flip), seed=seed)
    with _progress("training tokenizer", steps) as progress:
        model = train_tokenizer(config, images, recipe, checkpoint, progress, device=place)
    save.save_tokenizer(model, out, preprocess="resize-crop" if augment == "crop" else "fit")
    _finish(out, checkpoint)


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
    from avarc_cli.models.var.network import VARConfig
    from avarc_cli.train import save
    from avarc_cli.train.generator import EncodedImages, train_var
    from avarc_cli.train.images import Augment, TrainingImages
    from avarc_cli.train.loop import Recipe

    checkpoint = _checkpoint(out)
    chosen = open_images(data)
    if not chosen.class_names or (chosen.labels < 0).any():
        raise UsageError(
            "images without a class", "a class-conditional model needs one for each", "use class sub-folders"
        )
    if width % 64 or not 0 <= class_dropout < 1:
        raise UsageError(
            f"width {width}, class dropout {class_dropout}", "width is a multiple of 64, class dropout in [0, 1)"
        )
    _weights.ensure(tokenizer, yes=yes)
    reader = load_tokenizer(tokenizer, device=device)  # the generator is trained where its tokenizer is
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
    recipe = Recipe(steps=steps, batch_size=batch_size, lr=lr, seed=seed)
    images = TrainingImages(chosen, reader.image_size, Augment(mode=augment, flip=flip), seed=seed)
    with _progress("training VAR", steps) as progress:
        tokens = EncodedImages(reader.network, images)
        model = train_var(config, reader.network, tokens, recipe, checkpoint, progress, class_dropout=class_dropout)
    save.save_var(model, out, class_names=chosen.class_names, tokenizer_sha256=reader.sha256)
    _finish(out, checkpoint)


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
    import torch

    from avarc_cli.data.datasets import open_images
    from avarc_cli.data.labels import match
    from avarc_cli.loading import load_model
    from avarc_cli.models.var.added import base_of
    from avarc_cli.train import cca, save
    from avarc_cli.train.generator import EncodedImages
    from avarc_cli.train.images import Augment, TrainingImages
    from avarc_cli.train.loop import Recipe

    checkpoint = _checkpoint(out, folder=rank > 0)
    contrast = cca.Contrast(beta=beta, weight=weight, class_dropout=class_dropout)
    _weights.ensure(model, tokenizer, yes=yes)
    loaded = load_model(model, tokenizer, device=device)
    chosen = open_images(data)
    class_of = match(chosen.class_names, loaded.classes)
    if not chosen.class_names or (chosen.labels < 0).any() or (class_of < 0).any():
        unknown = [name for name, i in zip(chosen.class_names, class_of, strict=True) if i < 0]
        why = f"{loaded.name} has none called {', '.join(unknown[:4])}" if unknown else "every image needs one"
        raise UsageError("images without a class of the model", why, "use one sub-folder a class, named as the model's")
    labelled = replace(chosen, labels=class_of[chosen.labels].astype("int32"))
    reader, var = loaded.tokenizer, base_of(loaded.likelihood).var
    images = TrainingImages(labelled, reader.image_size, Augment(mode=augment, flip=flip), seed=seed)
    tokens = EncodedImages(reader.network, images)
    recipe = Recipe(steps=steps, batch_size=batch_size, lr=lr, seed=seed, weight_decay=0.0)
    student = cca.student_of(var, rank, torch.Generator().manual_seed(seed))
    with _progress("aligning", steps) as progress:
        cca.train_cca(var, student, reader.network.quantize, tokens, recipe, contrast, checkpoint, progress)
    if rank:
        save.save_lora(cca.adapter_of(student), out, base_sha256=loaded.sha256)
    else:
        save.save_var(student, out, class_names=loaded.classes.ids, tokenizer_sha256=reader.sha256)
    _finish(out, checkpoint)


def _checkpoint(out: Path, *, folder: bool = False) -> Path:
    """Where the training of `out` is kept; asked for first, because a bad name must not cost a training."""
    if not out.parent.is_dir():
        raise UsageError(f"cannot write '{out}'", f"'{out.parent}' is no folder")
    if out.exists() and out.is_dir() != folder:
        raise UsageError(f"cannot write '{out}'", f"it is a {'folder' if out.is_dir() else 'file'}", "name another")
    return out.with_name(out.name + ".ckpt")


@contextmanager
def _progress(description: str, steps: int) -> Iterator[Progress]:
    with console.progress(description, steps, unit="steps") as bar:
        yield lambda done, values: bar.update(done, note=" ".join(f"{name} {x:.4g}" for name, x in values.items()))


def _finish(out: Path, checkpoint: Path) -> None:
    checkpoint.unlink(missing_ok=True)
    console.result({"weights": out}, f"{out}: written", brief=str(out))
