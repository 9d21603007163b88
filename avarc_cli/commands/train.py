"""avarc train: a tokenizer and a generator of your own, from an image folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _images, _weights
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import Command, with_option_groups
from avarc_cli.settings import (
    check_augmentation,
    check_class_dropout,
    check_contrast,
    check_device,
    check_file,
    check_learning_rate,
    check_tokenizer_shape,
    check_width,
)
from avarc_cli.zoo.cards import check_weights

if TYPE_CHECKING:
    from avarc_cli.progress import MetricsProgress
    from avarc_cli.train.images import Augment
    from avarc_cli.train.loop import Recipe

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
    allow_outside: opt.AllowOutsideOpt = False

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        check_learning_rate(self.lr)
        check_augmentation(self.augment)

    def recipe(self) -> Recipe:
        """The training recipe, with the loop's defaults for everything else."""
        from avarc_cli.train.loop import Recipe

        return Recipe(steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=self.seed)

    def augmentation(self) -> Augment:
        """Random changes of the images."""
        from avarc_cli.train.images import Augment

        return Augment(mode=self.augment, flip=self.flip)


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
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: _RecipeOptions,
) -> None:
    """Train a multi-scale VQ-VAE that turns images into tokens and back.

    Example: avarc train tokenizer photos/ --image-size 64 --out tokenizer.safetensors
    """
    check_device(device)
    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "z_channels": channels,
        "ch": width,
        "ch_mult": opt.parse_numbers(multipliers, "--multipliers") or (),
        "patch_nums": opt.parse_numbers(patch_nums, "--patch-nums") or (),
        "blocks": blocks,
    }
    check_tokenizer_shape(image_size, shape["patch_nums"], shape["ch_mult"], width)
    with _reserved(out, overwrite):
        images = _images.open_noted(data, allow_outside=training.allow_outside)
        from avarc_cli.devices import pick_device  # imports torch: only now, after all that may be wrong
        from avarc_cli.train.tokenizer import train_tokenizer

        recipe = replace(training.recipe(), weight_decay=0.01, betas=(0.9, 0.99))
        with _progress("training tokenizer", recipe.steps) as progress:
            train_tokenizer(
                images,
                out,
                shape,
                recipe,
                image_size=image_size,
                family="vqvae",
                augment=training.augmentation(),
                device=pick_device(device),
                progress=progress,
                say=console.warn,
            )
    _show(out)


@app.command(cls=Command)
@with_option_groups
def var(
    data: opt.DataArg,
    *,
    out: OutOpt,
    tokenizer: Annotated[str, opt.model_option("--tokenizer", help="A tokenizer's name or file.")],
    tokenizer_config: opt.TokenizerConfigOpt = None,
    tokenizer_weight_set: opt.TokenizerWeightSetOpt = None,
    depth: Annotated[int, opt.model_option("--depth", min=1, help="Blocks.")] = 8,
    width: Annotated[int, opt.model_option("--width", min=64, help="Channels, a multiple of 64.")] = 512,
    shared_aln: Annotated[
        bool, opt.model_option("--shared-aln", help="One class modulation for all blocks: fewer parameters.")
    ] = False,
    device: opt.DeviceOpt = "auto",
    yes: opt.YesOpt = False,
    overwrite: opt.OverwriteOpt = False,
    as_json: opt.JsonOpt = False,
    training: _RecipeOptions,
    class_dropout: DropoutOpt = 0.1,
) -> None:
    """Train a VAR on the tokens of a folder with one sub-folder a class.

    Example: avarc train var photos/ --tokenizer tokenizer.safetensors --out var.safetensors
    """
    check_weights(tokenizer)
    check_device(device)
    check_class_dropout(class_dropout)
    check_width(width, "a VAR")
    check_file(tokenizer_config, "--tokenizer-config")
    with _reserved(out, overwrite, tokenizer):
        images = _images.open_noted(data, allow_outside=training.allow_outside)
        _weights.ensure(tokenizer, tokenizer_weight_set=tokenizer_weight_set, yes=yes)
        from avarc_cli.loading import ModelSpec, load_tokenizer  # imports torch: only now, after all that may be wrong
        from avarc_cli.train.generator import train_generator

        spec = ModelSpec(
            tokenizer, tokenizer_config=tokenizer_config, tokenizer_weight_set=tokenizer_weight_set, device=device
        )
        reader = load_tokenizer(spec)
        opt.note_inferred(reader)
        recipe = training.recipe()
        with _progress("training VAR", recipe.steps) as progress:
            train_generator(
                images,
                out,
                reader,
                {"depth": depth, "width": width, "shared_aln": shared_aln},
                recipe,
                family="var",
                augment=training.augmentation(),
                class_dropout=class_dropout,
                progress=progress,
                say=console.warn,
            )
    _show(out)


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
    model: opt.WeightsOptions,
    training: _FineTuningOptions,
    class_dropout: DropoutOpt = 0.1,
) -> None:
    """Fine-tune a generator to tell classes apart (condition contrastive alignment), whole or as a LoRA adapter.

    Example: avarc train cca photos/ --model var-d16 --rank 16 --out adapter/
    """
    check_contrast(beta, weight, class_dropout)
    with _reserved(out, overwrite, model.model, model.tokenizer, folder=rank > 0):
        images = _images.open_noted(data, allow_outside=training.allow_outside)
        from avarc_cli.loading import load_model  # imports torch: only now, after all that may be wrong
        from avarc_cli.train.cca import Contrast, align

        contrast = Contrast(beta=beta, weight=weight, class_dropout=class_dropout)
        loaded = load_model(model.fetch())
        opt.note_inferred(loaded)
        recipe = replace(training.recipe(), weight_decay=0.0)
        _images.note_numbers(images.class_names, loaded.classes)
        with _progress("aligning", recipe.steps) as progress:
            align(
                images,
                out,
                loaded,
                recipe,
                contrast=contrast,
                rank=rank,
                augment=training.augmentation(),
                progress=progress,
                say=console.warn,
            )
    _show(out)


@contextmanager
def _reserved(out: Path, overwrite: bool, *inputs: str | None, folder: bool = False) -> Iterator[None]:
    """Reserve the name of the weights, which a training that was interrupted may go on to replace.

    Args:
        inputs: names or files of weights that are read.
        folder: whether an adapter's folder is written.
    """
    from avarc_cli import outputs
    from avarc_cli.train.resume import resume_file
    from avarc_cli.work.locks import only_writer

    if folder:
        outputs.check_new_folder(out)
        with only_writer(out):
            yield
        return
    files = [Path(name) for name in inputs if name]
    with outputs.reserved(out, outputs.WEIGHTS, overwrite=overwrite or resume_file(out).exists(), inputs=files):
        yield


@contextmanager
def _progress(description: str, steps: int) -> Iterator[MetricsProgress]:
    with console.progress(description, steps, unit="step") as bar:
        yield lambda done, values: bar.update(done, note=" ".join(f"{name} {x:.4g}" for name, x in values.items()))


def _show(out: Path) -> None:
    console.result({"weights": out}, console.path_and(out, "written"), brief=str(out))
