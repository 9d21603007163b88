"""Options for the loss of a tokenizer: published terms, its discriminator, and measures against unused codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli.commands import _options as opt
from avarc_cli.errors import UsageError
from avarc_cli.settings import check_file, check_fraction, check_learning_rate, check_lpips, parse_pair

if TYPE_CHECKING:
    from avarc_cli.layers.vq_loss import Measures
    from avarc_cli.train.published_loss import Terms

discriminator_option = partial(typer.Option, rich_help_panel="Discriminator")
OF_DISCRIMINATOR = (
    "discriminator_lr",
    "discriminator_betas",
    "discriminator_weight_decay",
    "discriminator_start",
)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Terms of a tokenizer's published loss."""

    vgg: Annotated[
        Path | None,
        opt.training_option("--vgg", help="File of torchvision's vgg16, for LPIPS. Default: the downloaded one."),
    ] = None
    lpips: Annotated[
        Path | None,
        opt.training_option("--lpips", help="File of LPIPS's linear weights (v0.1, vgg). Default: the downloaded one."),
    ] = None
    convnext: Annotated[
        Path | None,
        opt.training_option(
            "--convnext", help="File of torchvision's convnext_small, for TiTok's loss. Default: the downloaded one."
        ),
    ] = None
    dino: Annotated[
        Path | None,
        opt.training_option(
            "--dino", help="File of DINO's ViT-S/16, for a VQ-VAE's discriminator. Default: the downloaded one."
        ),
    ] = None
    lpips_weight: Annotated[
        float | None, opt.training_option("--lpips-weight", help="Of LPIPS; 0: without. Default: as published.")
    ] = None
    convnext_weight: Annotated[
        float | None,
        opt.training_option("--convnext-weight", help="Of ConvNeXt's logits; 0: without. Default: as published."),
    ] = None
    adversarial: Annotated[
        bool, opt.training_option("--adversarial/--no-adversarial", help="Train against a discriminator.")
    ] = False
    discriminator_lr: Annotated[
        float | None, discriminator_option("--discriminator-lr", help="Peak learning rate. Default: --lr.")
    ] = None
    discriminator_betas: Annotated[
        str | None, discriminator_option("--discriminator-betas", help="Of AdamW. Default: as published.")
    ] = None
    discriminator_weight_decay: Annotated[
        float | None, discriminator_option("--discriminator-weight-decay", help="Of AdamW. Default: as published.")
    ] = None
    discriminator_start: Annotated[
        float | None,
        discriminator_option("--discriminator-start", help="After which fraction of the steps. Default: as published."),
    ] = None

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        for name in ("vgg", "lpips", "convnext", "dino"):
            check_file(getattr(self, name), f"--{name}")
        self._check_lpips()
        for weight in ("lpips_weight", "convnext_weight"):
            given = getattr(self, weight)
            if given is not None and not 0 <= given < math.inf:
                raise UsageError(f"--{weight.replace('_', '-')} is {given}", "it is at least 0")
        for name in OF_DISCRIMINATOR:
            option = f"--{name.replace('_', '-')}"
            if getattr(self, name) is not None and not self.adversarial:
                why = "the training has no discriminator"
                raise UsageError(f"no use for {option}", why, "add --adversarial, or leave it out")
        if self.discriminator_lr is not None:
            check_learning_rate(self.discriminator_lr)
        if self.discriminator_betas is not None:
            parse_pair(self.discriminator_betas, "--discriminator-betas")
        if self.discriminator_weight_decay is not None and not 0 <= self.discriminator_weight_decay < math.inf:
            raise UsageError(f"--discriminator-weight-decay is {self.discriminator_weight_decay}", "it is at least 0")
        if self.discriminator_start is not None:
            check_fraction(self.discriminator_start, "--discriminator-start")

    def _check_lpips(self) -> None:
        """Raises: UsageError where one of the files is named, and the other neither named nor downloaded."""
        from avarc_cli.zoo.networks import LPIPS, VGG16, downloaded

        if (self.vgg or self.lpips) and self.lpips_weight != 0:
            check_lpips(self.vgg or downloaded(VGG16), self.lpips or downloaded(LPIPS))

    def terms(self) -> Terms:
        """What of the published loss is asked for."""
        from avarc_cli.train.published_loss import Terms

        given: dict[str, Any] = dict(vars(self))
        if self.discriminator_betas is not None:
            given["discriminator_betas"] = parse_pair(self.discriminator_betas, "--discriminator-betas")
        return Terms(**given)


@dataclass(frozen=True, kw_only=True)
class CodeOptions:
    """Measures against codes that fall out of use."""

    revive: Annotated[
        bool, opt.training_option("--revive/--no-revive", help="Replace unused codes by latents now and then.")
    ] = True
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
