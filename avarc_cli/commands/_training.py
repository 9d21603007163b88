"""What the training commands share: options, the reserved output, progress, and the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _images, _weights
from avarc_cli.commands import _options as opt
from avarc_cli.commands._running import RunOptions
from avarc_cli.settings import (
    check_augmentation,
    check_class_dropout,
    check_device,
    check_file,
    check_fraction,
    check_learning_rate,
    check_lpips,
)
from avarc_cli.zoo.cards import check_weights

if TYPE_CHECKING:
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.layers.vq_loss import Measures
    from avarc_cli.loaded import LoadedTokenizer
    from avarc_cli.progress import MetricsProgress
    from avarc_cli.train.images import Augment
    from avarc_cli.train.published_loss import Terms
    from avarc_cli.train.recipe import Recipe

ImageSizeOpt = Annotated[int, opt.model_option("--image-size", min=1, help="Side of the images in pixels.")]
VocabularyOpt = Annotated[int, opt.model_option("--vocab", min=1, help="Codebook entries.")]
WidthOpt = Annotated[int, opt.model_option("--width", min=32, help="Channels of the first level, a multiple of 32.")]
MultipliersOpt = Annotated[
    str,
    opt.model_option("--multipliers", help="Width of each level in first widths; each level but one halves the side."),
]
BlocksOpt = Annotated[int, opt.model_option("--blocks", min=1, help="Residual blocks a level.")]
CodeChannelsOpt = Annotated[int, opt.model_option("--channels", min=1, help="Channels of the codes.")]
DepthOpt = Annotated[int, opt.model_option("--depth", min=1, help="Blocks.")]
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
        from avarc_cli.train.recipe import Recipe

        return Recipe(steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=self.seed)

    def tokenizer_recipe(self) -> Recipe:
        """The same for a tokenizer."""
        return replace(self.recipe(), weight_decay=0.01, betas=(0.9, 0.99))

    def augmentation(self) -> Augment:
        """Random changes of the images."""
        from avarc_cli.train.images import Augment

        return Augment(mode=self.augment, flip=self.flip)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(RunOptions, _RecipeOptions):  # help lists the fields of the last base first
    def __post_init__(self) -> None:
        """Raises: UsageError."""
        _RecipeOptions.__post_init__(self)
        RunOptions.__post_init__(self)

    def open(self, data: list[Path]) -> tuple[ImageSet, ImageSet | None]:
        """The images of DATA to train on, and those to validate on, if any; notes what was recognized."""
        return self.parts(_images.open_noted(data, allow_outside=self.allow_outside), self.seed)

    def recipe(self) -> Recipe:
        """The training recipe."""
        return replace(super().recipe(), save_every=self.save_every)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Terms of a tokenizer's published loss."""

    vgg: Annotated[
        Path | None, opt.training_option("--vgg", help="File of torchvision's vgg16, for the perceptual loss LPIPS.")
    ] = None
    lpips: Annotated[
        Path | None, opt.training_option("--lpips", help="File of the lpips package's linear weights (v0.1, vgg).")
    ] = None
    convnext: Annotated[
        Path | None, opt.training_option("--convnext", help="File of torchvision's convnext_small: its logits (TiTok).")
    ] = None
    dino: Annotated[
        Path | None, opt.training_option("--dino", help="File of DINO's ViT-S/16, for the discriminator of a VQ-VAE.")
    ] = None
    adversarial: Annotated[
        bool, opt.training_option("--adversarial/--no-adversarial", help="Train against a discriminator.")
    ] = False

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        for name in ("vgg", "lpips", "convnext", "dino"):
            check_file(getattr(self, name), f"--{name}")
        check_lpips(self.vgg, self.lpips)

    def terms(self) -> Terms:
        from avarc_cli.train.published_loss import Terms

        return Terms(**vars(self))


@dataclass(frozen=True, kw_only=True)
class CodeOptions:
    """Measures against codes that fall out of use."""

    reanchor: Annotated[
        bool, opt.training_option("--reanchor", help="Move rarely used codes towards latents of every batch.")
    ] = False
    perturbation: Annotated[
        float, opt.training_option("--perturb", help="Fraction of images decoded from codes near theirs.")
    ] = 0.0

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        check_fraction(self.perturbation, "--perturb")

    def measures(self) -> Measures:
        from avarc_cli.layers.vq_loss import Measures

        return Measures(**vars(self))


@dataclass(frozen=True, kw_only=True)
class ScaleOptions(CodeOptions):
    scale_dropout: Annotated[
        float,
        opt.training_option("--scale-dropout", help="Fraction of images of which only the first scales count."),
    ] = 0.0

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        super().__post_init__()
        check_fraction(self.scale_dropout, "--scale-dropout")


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions(RecipeOptions):
    steps: Annotated[int, opt.training_option("--steps", min=1, help="Optimizer steps.")] = 500
    lr: Annotated[float, opt.training_option("--lr", help="Peak learning rate.")] = 2e-5


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """The tokenizer whose tokens a generator is trained on."""

    tokenizer: Annotated[str, opt.model_option("--tokenizer", help="A tokenizer's name or file.")]
    tokenizer_config: opt.TokenizerConfigOpt = None
    tokenizer_weight_set: opt.TokenizerWeightSetOpt = None
    device: opt.DeviceOpt = "auto"
    yes: opt.YesOpt = False

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        check_weights(self.tokenizer)
        check_device(self.device)
        check_file(self.tokenizer_config, "--tokenizer-config")

    def load(self, *, text_encoder: str | None = None) -> LoadedTokenizer:
        """The tokenizer; missing weights are downloaded if the user agrees.

        Args:
            text_encoder: name of one whose weights are needed too.
        """
        sets = self.tokenizer_weight_set
        _weights.ensure(self.tokenizer, tokenizer_weight_set=sets, yes=self.yes, text_encoder=text_encoder)
        from avarc_cli.loading import ModelSpec, load_tokenizer  # imports torch: only now, after all that may be wrong

        spec = ModelSpec(
            self.tokenizer,
            tokenizer_config=self.tokenizer_config,
            tokenizer_weight_set=self.tokenizer_weight_set,
            device=self.device,
        )
        loaded = load_tokenizer(spec)
        opt.note_inferred(loaded)
        return loaded


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """The shape of a transformer."""

    depth: Annotated[int, opt.model_option("--depth", min=1, help="Blocks.")] = 8
    width: Annotated[int, opt.model_option("--width", min=4, help="Channels.")] = 512
    heads: Annotated[
        int | None, opt.model_option("--heads", min=1, help="Attention heads. Default: of 64 channels each.")
    ] = None


def train_tokenizer(
    data: list[Path],
    out: Path,
    shape: Mapping[str, Any],
    training: RecipeOptions,
    loss: LossOptions,
    codes: CodeOptions,
    *,
    family: str,
    image_size: int,
    device: str,
    overwrite: bool,
) -> None:
    """Train a tokenizer of this family on the images of DATA, and show where it is."""
    check_device(device)
    with reserved(out, overwrite):
        images, held_out = training.open(data)
        from avarc_cli.devices import pick_device  # imports torch: only now, after all that may be wrong
        from avarc_cli.train import tokenizer

        recipe = training.tokenizer_recipe()
        with progress("training tokenizer", recipe.steps) as told:
            tokenizer.train_tokenizer(
                images,
                out,
                shape,
                recipe,
                image_size=image_size,
                family=family,
                augment=training.augmentation(),
                terms=loss.terms(),
                measures=codes.measures(),
                device=pick_device(device),
                held_out=held_out,
                run=training.run(out),
                progress=told,
                say=console.warn,
                note=console.note,
            )
    show(out, training)


def train_generator(
    data: list[Path],
    out: Path,
    shape: Mapping[str, Any],
    training: RecipeOptions,
    reads: TokenizerOptions,
    *,
    family: str,
    class_dropout: float,
    overwrite: bool,
) -> None:
    """Train a generator of this family on the tokens of the images of DATA, and show where it is."""
    check_class_dropout(class_dropout)
    with reserved(out, overwrite, reads.tokenizer):
        images, held_out = training.open(data)
        reader = reads.load()
        from avarc_cli.train import generator

        recipe = replace(training.recipe(), class_dropout=class_dropout)
        with progress(f"training {family}", recipe.steps) as told:
            generator.train_generator(
                images,
                out,
                reader,
                shape,
                recipe,
                family=family,
                augment=training.augmentation(),
                held_out=held_out,
                run=training.run(out),
                progress=told,
                say=console.warn,
            )
    show(out, training)


@contextmanager
def reserved(out: Path, overwrite: bool, *inputs: str | None, folder: bool = False) -> Iterator[None]:
    """Reserve the name of the weights, which a training that was interrupted may go on to replace.

    Args:
        inputs: names or files of weights that are read.
        folder: whether an adapter's folder is written.
    """
    from avarc_cli import outputs, processes
    from avarc_cli.train.resume import resume_file
    from avarc_cli.work.locks import only_writer

    if not processes.is_first():  # one of several writes; the others may be on machines without its folders
        yield
        return
    if folder:
        outputs.check_new_folder(out)
    else:
        files = [Path(name) for name in inputs if name]
        overwrite = overwrite or resume_file(out).exists()
        outputs.check_output(out, outputs.WEIGHTS, overwrite=overwrite, inputs=files)
    with only_writer(out):
        yield


@contextmanager
def progress(description: str, steps: int) -> Iterator[MetricsProgress]:
    with console.progress(description, steps, unit="step") as bar:
        yield lambda done, values: bar.update(
            done, note=" ".join(f"{name} {x:.4g}" for name, x in values.items()), numbers=values
        )


def show(out: Path, run: RunOptions | None = None) -> None:
    """Say where the weights are; after a dry run there are none."""
    if run is not None and run.dry_run:
        return
    console.result({"weights": out}, console.path_and(out, "written"), brief=str(out))
