"""avarc train: a tokenizer and a generator of your own, from an image folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights
from avarc_cli.commands._groups import Command, with_option_groups
from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.train.images import TrainingImages
    from avarc_cli.train.loop import Progress, Recipe

app = typer.Typer(
    help="Train a tokenizer or a generator on an image folder.\n\nExample: avarc train tokenizer photos/ --out vq.st",
    no_args_is_help=True,
)

OutOpt = Annotated[Path, typer.Option("--out", "-o", help="Weights to write (safetensors); OUT.ckpt resumes training.")]
DropoutOpt = Annotated[
    float, opt.training_option("--class-dropout", help="Fraction of images trained on as unconditional.")
]


@dataclass(frozen=True, kw_only=True)
class _RecipeOptions:
    steps: Annotated[int, opt.training_option("--steps", min=1, help="Optimizer steps.")] = 20_000
    batch_size: Annotated[int, opt.training_option("--batch-size", min=1, help="Images in a step.")] = 32
    lr: Annotated[float, opt.training_option("--lr", help="Peak learning rate.")] = 3e-4
    augment: Annotated[
        str,
        opt.training_option(
            "--augment", help="crop (random crop), affine (rotate, scale, shear, shift: small objects) or none."
        ),
    ] = "crop"
    flip: Annotated[bool, opt.training_option("--flip", help="Mirror half of the images.")] = False
    seed: opt.SeedOpt = 0

    def recipe(self) -> Recipe:
        """The training recipe, with the loop's defaults for everything else."""
        from avarc_cli.train.loop import Recipe

        return Recipe(steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=self.seed)

    def images(self, chosen: ImageSet, size: int) -> TrainingImages:
        """The images as they are trained on, of `size` pixels a side."""
        from avarc_cli.train.images import Augment, TrainingImages

        return TrainingImages(chosen, size, Augment(mode=self.augment, flip=self.flip), seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class _FineTuningOptions(_RecipeOptions):
    steps: Annotated[int, opt.training_option("--steps", min=1, help="Optimizer steps.")] = 500
    lr: Annotated[float, opt.training_option("--lr", help="Peak learning rate.")] = 2e-5


@app.command(cls=Command)
@with_option_groups
def tokenizer(
    data: opt.DataArg,
    *,
    out: OutOpt,
    image_size: Annotated[int, opt.model_option("--image-size", min=1, help="Side of the images in pixels.")] = 64,
    patch_nums: Annotated[
        str,
        opt.model_option(
            "--patch-nums", help="Sides of the scales; the last times the downsampling is the image size."
        ),
    ] = "1,2,3,4,6,8",
    vocab: Annotated[int, opt.model_option("--vocab", min=1, help="Codebook entries.")] = 512,
    channels: Annotated[int, opt.model_option("--channels", min=1, help="Latent channels.")] = 16,
    width: Annotated[
        int, opt.model_option("--width", min=32, help="Channels of the first level, a multiple of 32.")
    ] = 64,
    multipliers: Annotated[
        str,
        opt.model_option(
            "--multipliers", help="Width of each level in first widths; each level but one halves the side."
        ),
    ] = "1,2,2,4",
    blocks: Annotated[int, opt.model_option("--blocks", min=1, help="Residual blocks a level.")] = 2,
    device: opt.DeviceOpt = "auto",
    as_json: opt.JsonOpt = False,
    training: _RecipeOptions,
) -> None:
    """Train a multi-scale VQ-VAE that turns images into tokens and back.

    Example: avarc train tokenizer photos/ --image-size 64 --out tokenizer.safetensors
    """
    from avarc_cli.data.datasets import open_images
    from avarc_cli.loading import pick_device
    from avarc_cli.tokenizers.vqvae import VQVAEConfig
    from avarc_cli.train import save
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
    recipe = replace(training.recipe(), weight_decay=0.01, betas=(0.9, 0.99))
    images = training.images(open_images(data), image_size)
    with _progress("training tokenizer", recipe.steps) as progress:
        model = train_tokenizer(config, images, recipe, checkpoint, progress, device=place)
    save.save_tokenizer(model, out, preprocess="resize-crop" if training.augment == "crop" else "fit")
    _finish(out, checkpoint)


@app.command(cls=Command)
@with_option_groups
def var(
    data: opt.DataArg,
    *,
    out: OutOpt,
    tokenizer: Annotated[str, opt.model_option("--tokenizer", help="A tokenizer's name or file.")],
    depth: Annotated[int, opt.model_option("--depth", min=1, help="Blocks.")] = 8,
    width: Annotated[int, opt.model_option("--width", min=64, help="Channels, a multiple of 64.")] = 512,
    shared_aln: Annotated[
        bool, opt.model_option("--shared-aln", help="One class modulation for all blocks: fewer parameters.")
    ] = False,
    device: opt.DeviceOpt = "auto",
    yes: opt.YesOpt = False,
    as_json: opt.JsonOpt = False,
    training: _RecipeOptions,
    class_dropout: DropoutOpt = 0.1,
) -> None:
    """Train a VAR on the tokens of a folder with one sub-folder a class.

    Example: avarc train var photos/ --tokenizer tokenizer.safetensors --out var.safetensors
    """
    from avarc_cli.data.datasets import open_images
    from avarc_cli.loading import ModelSpec, load_tokenizer
    from avarc_cli.models.var.network import VARConfig
    from avarc_cli.train import save
    from avarc_cli.train.generator import EncodedImages, train_var

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
    reader = load_tokenizer(ModelSpec(tokenizer, device=device))  # the generator is trained where its tokenizer is
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
    recipe, images = training.recipe(), training.images(chosen, reader.image_size)
    with _progress("training VAR", recipe.steps) as progress:
        tokens = EncodedImages(reader.network, images)
        model = train_var(config, reader.network, tokens, recipe, checkpoint, progress, class_dropout=class_dropout)
    save.save_var(model, out, class_names=chosen.class_names, tokenizer_sha256=reader.sha256)
    _finish(out, checkpoint)


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
    as_json: opt.JsonOpt = False,
    model: opt.WeightsOptions,
    training: _FineTuningOptions,
    class_dropout: DropoutOpt = 0.1,
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

    checkpoint = _checkpoint(out, folder=rank > 0)
    contrast = cca.Contrast(beta=beta, weight=weight, class_dropout=class_dropout)
    loaded = load_model(model.fetch())
    chosen = open_images(data)
    class_of = match(chosen.class_names, loaded.classes)
    if not chosen.class_names or (chosen.labels < 0).any() or (class_of < 0).any():
        unknown = [name for name, i in zip(chosen.class_names, class_of, strict=True) if i < 0]
        why = f"{loaded.name} has none called {', '.join(unknown[:4])}" if unknown else "every image needs one"
        raise UsageError("images without a class of the model", why, "use one sub-folder a class, named as the model's")
    labelled = replace(chosen, labels=class_of[chosen.labels].astype("int32"))
    reader, var = loaded.tokenizer, base_of(loaded.likelihood).var
    tokens = EncodedImages(reader.network, training.images(labelled, reader.image_size))
    recipe = replace(training.recipe(), weight_decay=0.0)
    student = cca.student_of(var, rank, torch.Generator().manual_seed(recipe.seed))
    with _progress("aligning", recipe.steps) as progress:
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
