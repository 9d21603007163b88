"""Options for what a training minimizes and how: `train.recipe.Recipe`, of which each family knows a part."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _config, _summary
from avarc_cli.commands import _options as opt
from avarc_cli.commands._running import RunOptions, open_source
from avarc_cli.errors import UsageError
from avarc_cli.settings import (
    check_augmentation,
    check_class_dropout,
    check_learning_rate,
    check_short_side,
    parse_pair,
)

if TYPE_CHECKING:
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.tokens.cache import TokenCache
    from avarc_cli.tokens.source import Source
    from avarc_cli.train.images import Augment
    from avarc_cli.train.recipe import Recipe

optimizer_option = partial(typer.Option, rich_help_panel="Optimizer")


def _length(context: typer.Context, param: typer.CallbackParam, value: float | None) -> float | None:
    """Callback of --steps and --epochs: the one on the command line wins over the other one in a file.

    Typer calls it first for what is on the command line.
    Raises: UsageError for both on the command line.
    """
    other = "steps" if param.name == "epochs" else "epochs"
    own, others = (context.get_parameter_source(name) for name in (str(param.name), other))
    if others is None or others.name != "COMMANDLINE":
        return value
    if own is not None and own.name == "COMMANDLINE":
        raise UsageError(
            "--steps and --epochs cannot be used together", "each says how long the training is", "leave out one"
        )
    return None if param.name == "epochs" else value


@dataclass(frozen=True, kw_only=True)
class _TrainingOptions:
    recipe_file: Annotated[
        str | None,
        opt.training_option(
            "--recipe",
            callback=_config.apply_recipe,
            is_eager=True,
            help="Published options by name (avarc train recipes), or a file of yours; other options win.",
            autocompletion=complete.recipes,
        ),
    ] = None
    steps: Annotated[int, opt.training_option("--steps", min=1, callback=_length, help="Optimizer steps.")] = 20_000
    epochs: Annotated[
        float | None,
        opt.training_option("--epochs", callback=_length, help="Times that each image is seen, in place of --steps."),
    ] = None
    batch_size: Annotated[int, opt.training_option("--batch-size", min=1, help="Images in a step.")] = 32
    lr: Annotated[float, opt.training_option("--lr", help="Peak learning rate.")] = 3e-4
    lr_batch_size: Annotated[
        int | None,
        opt.training_option(
            "--lr-batch-size", min=1, help="Batch size that --lr is for; for another one the rate is in proportion."
        ),
    ] = None
    augment: Annotated[
        str,
        opt.training_option(
            "--augment",
            help="crop (random crop of the middle), whole (of the whole image), affine (rotate, scale, shear, shift: "
            "small objects) or none.",
            autocompletion=complete.one_of("crop", "whole", "affine", "none"),
        ),
    ] = "crop"
    short_side: Annotated[
        str,
        opt.training_option(
            "--short-side", help="With --augment whole: how long an image's shorter side is, in sides of the crop."
        ),
    ] = "1.125,1.125"
    flip: Annotated[bool, opt.training_option("--flip", help="Mirror half of the images.")] = False
    seed: opt.SeedOpt = 0
    dataset: opt.DatasetOpt = None
    allow_outside: opt.AllowOutsideOpt = False

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        check_learning_rate(self.lr)
        check_augmentation(self.augment)
        check_short_side(parse_pair(self.short_side, "--short-side"))
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UsageError(f"--epochs is {self.epochs}", "it must be a positive number")

    def augmentation(self) -> Augment:
        """Random changes of the images."""
        from avarc_cli.train.images import Augment

        sides = parse_pair(self.short_side, "--short-side")
        return Augment(mode=self.augment, flip=self.flip, short_side=sides)


@dataclass(frozen=True, kw_only=True)
class _OptimizerOptions:
    schedule: Annotated[
        str,
        optimizer_option(
            "--schedule",
            help="Of the learning rate: plateau, cosine, constant, or VAR's cos, lin0, lin, lin00, exp.",
            autocompletion=complete.one_of("plateau", "cosine", "constant", "cos", "lin0", "lin", "lin00", "exp"),
        ),
    ] = "plateau"
    warmup: Annotated[
        float, optimizer_option("--warmup", help="Steps of the linear rise at first; below 1, a fraction of all.")
    ] = 0.05
    hold: Annotated[
        float, optimizer_option("--hold", help="Steps at the peak after it, of the schedule plateau; or a fraction.")
    ] = 0.1
    first: Annotated[float, optimizer_option("--first", help="First learning rate, as a fraction of the peak.")] = 0.005
    final: Annotated[float, optimizer_option("--final", help="Last learning rate, as a fraction of the peak.")] = 0.01
    weight_decay: Annotated[float, optimizer_option("--weight-decay", help="Of AdamW.")] = 0.05
    final_weight_decay: Annotated[
        float | None, optimizer_option("--final-weight-decay", help="What it changes to along a cosine.")
    ] = None
    decayed: Annotated[
        str,
        optimizer_option(
            "--decayed",
            help="What decays: linears (and convolutions), or published: as in the family's own code.",
            autocompletion=complete.one_of("linears", "published"),
        ),
    ] = "linears"
    betas: Annotated[str, optimizer_option("--betas", help="Of AdamW.")] = "0.9,0.95"
    clip: Annotated[float, optimizer_option("--clip", help="Largest norm of the gradient; 0 for no limit.")] = 2.0
    ema_decay: Annotated[
        float,
        optimizer_option("--ema-decay", help="Of the average of the weights, which is written; 0 for no average."),
    ] = 0.999
    ema_start: Annotated[
        str,
        optimizer_option(
            "--ema-start",
            help="How the average begins: tensorflow, copy, half or none.",
            autocompletion=complete.one_of("tensorflow", "copy", "half", "none"),
        ),
    ] = "tensorflow"

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        from avarc_cli.train.schedules import check_schedule

        check_schedule(self.schedule)
        parse_pair(self.betas, "--betas")


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(RunOptions, _OptimizerOptions, _TrainingOptions):  # help lists the fields of the last base first
    """Of every training. Families with more to choose have a class of their own."""

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        for each in (_TrainingOptions, _OptimizerOptions, RunOptions):
            each.__post_init__(self)

    def open(self, data: list[Path]) -> tuple[ImageSet, ImageSet | None]:
        """The images of DATA to train on, and those to validate on, if any; notes what was recognized.

        Raises: UsageError for a token cache.
        """
        for path in [*data, *(self.validation or ())]:
            if _summary.is_cache([path]):
                raise UsageError(f"'{path}' is a token cache", "this training reads images", "name the images")
        return cast("tuple[ImageSet, ImageSet | None]", self.open_source(data))

    def open_source(self, data: list[Path]) -> tuple[Source, Source | None]:
        """As `open`; DATA may be a token cache."""
        from avarc_cli.tokens.cache import TokenCache

        source = open_source(data, self.dataset, allow_outside=self.allow_outside)
        if isinstance(source, TokenCache):
            if self.dataset is not None:
                why = f"'{source.path}' is encoded already, and says what its classes are"
                raise UsageError("no use for --dataset", why, "leave out --dataset")
            self._note_views(source)
        parts = self.parts(source, self.seed, self.dataset, allow_outside=self.allow_outside)
        if isinstance(source, TokenCache) and not isinstance(parts[1], TokenCache | None):
            why = f"'{source.path}' is a token cache, and its images may be cut in another way than these would be"
            raise UsageError("cannot validate on images", why, "encode them in the same way: avarc encode")
        return parts

    def _note_views(self, cache: TokenCache) -> None:
        """Say what a training sees of a cache's images."""
        from avarc_cli.tokens.header import SMOOTHING

        header = cache.header
        if cache.others:
            views = ", ".join(f"{each.header.samples} ({each.header.views})" for each in (cache, *cache.others))
            console.note(f"each epoch shows one view of an image, of a cache drawn at random: {views}")
        elif header.views == SMOOTHING and header.samples > 1:
            console.note("smoothing samples are not trained on, only the images themselves")
        elif header.samples > 1:
            console.note(f"each epoch shows one of the {header.samples} views of an image ({header.views})")
        if self.flip or self.augment != "crop":
            console.warn("--augment and --flip change nothing: a cache holds tokens of images as they were encoded")

    def recipe(self, images: int) -> Recipe:
        """The recipe of a training on this many images. Raises: UsageError for numbers out of range."""
        from avarc_cli.train.recipe import Recipe

        known = {field.name for field in fields(Recipe)}
        chosen: dict[str, Any] = {name: value for name, value in vars(self).items() if name in known}
        if self.epochs is not None:
            chosen["steps"] = max(1, math.ceil(self.epochs * images / self.batch_size))
        if self.lr_batch_size is not None:
            chosen["lr"] = self.lr * self.batch_size / self.lr_batch_size
        for name in ("betas", "anneal"):
            if name in chosen:
                chosen[name] = parse_pair(chosen[name], f"--{name}")
        for name in ("clip", "ema_decay"):
            chosen[name] = chosen[name] or None
        return Recipe(**chosen)


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipeOptions(RecipeOptions):
    weight_decay: Annotated[float, optimizer_option("--weight-decay", help="Of AdamW.")] = 0.01
    betas: Annotated[str, optimizer_option("--betas", help="Of AdamW.")] = "0.9,0.99"


@dataclass(frozen=True, kw_only=True)
class VQVAERecipeOptions(TokenizerRecipeOptions):
    """Of a multi-scale VQ-VAE."""

    dropout: Annotated[float, opt.training_option("--dropout", help="Fraction of activations left out.")] = 0.0


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions(RecipeOptions):
    steps: Annotated[int, opt.training_option("--steps", min=1, callback=_length, help="Optimizer steps.")] = 500
    lr: Annotated[float, opt.training_option("--lr", help="Peak learning rate.")] = 2e-5
    weight_decay: Annotated[float, optimizer_option("--weight-decay", help="Of AdamW.")] = 0.0
    class_dropout: Annotated[
        float, opt.training_option("--class-dropout", help="Fraction of images trained on as unconditional.")
    ] = 0.1

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        super().__post_init__()
        check_class_dropout(self.class_dropout)


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions(RecipeOptions):
    class_dropout: Annotated[
        float, opt.training_option("--class-dropout", help="Fraction of images trained on as unconditional.")
    ] = 0.1
    smoothing: Annotated[float, opt.training_option("--smoothing", help="Of the labels in the cross-entropy.")] = 0.0

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        super().__post_init__()
        check_class_dropout(self.class_dropout)


@dataclass(frozen=True, kw_only=True)
class ScalesOptions(GeneratorOptions):
    """Of a VAR."""

    drop_path: Annotated[
        float,
        opt.training_option("--drop-path", help="Fraction of images that skip a branch of the last block."),
    ] = 0.0
    progressive: Annotated[
        float,
        opt.training_option(
            "--progressive", help="Add scales one by one, until this fraction of the steps; by VAR's schedule lin<it>."
        ),
    ] = 0.0
    progressive_first: Annotated[
        int, opt.training_option("--progressive-first", min=0, help="Last scale trained at first, from 0.")
    ] = 1
    progressive_ramp: Annotated[
        float,
        opt.training_option("--progressive-ramp", help="Steps over which a new scale gains weight; or a fraction."),
    ] = 1 / 300


@dataclass(frozen=True, kw_only=True)
class DropoutOptions(GeneratorOptions):
    """Of a LlamaGen."""

    dropout: Annotated[float, opt.training_option("--dropout", help="Fraction of activations left out.")] = 0.0


@dataclass(frozen=True, kw_only=True)
class SkippingOptions(DropoutOptions):
    """Of a RandAR."""

    skip_norm: Annotated[
        float | None,
        optimizer_option("--skip-norm", help="Skip updates whose tensors' clipped norms sum to this."),
    ] = None
    skip_from: Annotated[int, optimizer_option("--skip-from", min=0, help="First step that may be skipped.")] = 0


@dataclass(frozen=True, kw_only=True)
class OrdersOptions(DropoutOptions):
    """Of a RAR."""

    anneal: Annotated[
        str,
        opt.training_option(
            "--anneal", help="Fractions of the steps: random orders until the first, none from the second on."
        ),
    ] = "0.5,0.75"

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        super().__post_init__()
        parse_pair(self.anneal, "--anneal")


@dataclass(frozen=True, kw_only=True)
class HiddenOptions(GeneratorOptions):
    """Of a model of hidden tokens."""

    visible: Annotated[
        float, opt.training_option("--visible", help="Weight of visible tokens in the loss; hidden ones weigh 1.")
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class MaskGITOptions(HiddenOptions):
    """Of a MaskGIT of classes."""

    dropout: Annotated[float, opt.training_option("--dropout", help="Fraction of activations left out: of a BERT.")] = (
        0.0
    )
