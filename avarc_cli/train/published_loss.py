"""The terms of a tokenizer's published loss that the user asks for, from files of frozen networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avarc_cli.errors import UsageError
from avarc_cli.family import PixelLoss
from avarc_cli.layers.collectives import count
from avarc_cli.layers.loss_weights import Adversary, LossWeights
from avarc_cli.settings import check_lpips
from avarc_cli.train.adversarial import AdversarialStep, Opponent
from avarc_cli.train.discriminators import vit
from avarc_cli.train.discriminators.blur import BlurDiscriminator
from avarc_cli.train.discriminators.dino import DinoDiscriminator
from avarc_cli.train.discriminators.patchgan import PatchGAN
from avarc_cli.train.loop import fingerprint
from avarc_cli.train.perceptual import convnext, lpips
from avarc_cli.train.recipe import Recipe
from avarc_cli.zoo import checkpoint

SMALLEST_FOR_VGG = 16  # pixels: it halves the sides four times


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What of a published loss to train with; None and False leave terms out, all of them the published loss itself."""

    vgg: Path | None = None
    """torchvision's vgg16."""
    lpips: Path | None = None
    """The linear weights of the lpips package."""
    convnext: Path | None = None
    """torchvision's convnext_small."""
    dino: Path | None = None
    """A ViT-S/16 for the discriminator."""
    adversarial: bool = False
    discriminator_lr: float | None = None
    """Of the discriminator's training, in place of what is published: the peak rate,"""
    discriminator_betas: tuple[float, float] | None = None
    discriminator_weight_decay: float | None = None
    discriminator_start: float | None = None
    """and the fraction of the steps after which it counts."""

    def are_given(self) -> bool:
        return self != Terms()

    def changed(self, published: LossWeights) -> LossWeights:
        """The published loss with the discriminator that is asked for."""
        asked = {name: getattr(self, f"discriminator_{name}") for name in ("lr", "betas", "weight_decay", "start")}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return replace(published, adversary=replace(published.adversary, **given))


def left_out(weights: LossWeights, terms: Terms) -> str:
    """The terms of the published loss that are not trained with, and the options that add them; "" for none."""
    adversary = "--adversarial and --dino" if weights.adversary.kind == "dino" else "--adversarial"
    missing = [
        f"{name} ({options})"
        for name, is_left_out, options in (
            ("LPIPS", weights.lpips and not terms.lpips, "--vgg and --lpips"),
            ("the logits of ConvNeXt", weights.logits and not terms.convnext, "--convnext"),
            ("a discriminator", not terms.adversarial, adversary),
        )
        if is_left_out
    ]
    return f"the published loss is trained without {', '.join(missing)}" if missing else ""


def check(weights: LossWeights, terms: Terms, image_size: int) -> None:
    """Raises: UsageError for files that are missing, or of no use in this loss."""
    check_lpips(terms.vgg, terms.lpips)
    has_vit = weights.adversary.kind == "dino"
    for option, given, is_used in (
        ("--lpips", terms.lpips, weights.lpips),
        ("--convnext", terms.convnext, weights.logits),
        ("--dino", terms.dino, has_vit),
    ):
        if given and not is_used:
            raise UsageError(f"{option} has no use here", "the published loss of this tokenizer has no such term")
    if terms.lpips and image_size < SMALLEST_FOR_VGG:
        raise UsageError(
            f"LPIPS cannot compare images of {image_size} pixels",
            f"VGG16 needs {SMALLEST_FOR_VGG}",
            "leave out --lpips",
        )
    if has_vit and terms.adversarial != (terms.dino is not None):
        there, missing = ("--adversarial", "--dino") if terms.adversarial else ("--dino", "--adversarial")
        raise UsageError(
            f"{there} needs {missing} here",
            "this tokenizer's discriminator sees through a frozen ViT-S/16, that of DINO",
            f"add {missing}",
        )


def make(loss: PixelLoss, terms: Terms, recipe: Recipe, image_size: int, device: torch.device) -> AdversarialStep:
    """The published loss with these terms, which `check` has accepted, on a device. Uses torch's seed.

    Raises: CheckpointError for a file that cannot be read, or is of another network.
    """
    weights = terms.changed(loss.published)
    networks: dict[str, Any] = {}
    if terms.vgg and terms.lpips:
        features, heads = checkpoint.read(terms.vgg).tensors, checkpoint.read(terms.lpips).tensors
        networks["lpips"] = lpips.from_tensors(features, heads, f"{terms.vgg} with {terms.lpips}").to(device)
    if terms.convnext:
        tensors = checkpoint.read(terms.convnext).tensors
        networks["logits"] = convnext.from_tensors(tensors, str(terms.convnext)).to(device)
    if terms.adversarial:
        adversary = weights.adversary
        network = _discriminator(adversary, terms.dino, image_size, device).to(device)
        start, ramp = (round(share * recipe.steps) for share in (adversary.start, adversary.ramp))
        networks["opponent"] = Opponent(network, adversary, start=start, ramp=ramp)
        return AdversarialStep(loss, _rate(adversary, recipe, start), weights=weights, **networks)
    return AdversarialStep(loss, recipe.rate, weights=weights, **networks)


def _rate(adversary: Adversary, recipe: Recipe, start: int) -> Callable[[int], float]:
    """The discriminator's learning rate at a step of the training, from 0."""
    lr = adversary.lr or recipe.lr
    if not adversary.own_schedule:
        return replace(recipe, lr=lr).rate
    own = recipe.beginning_at(start, lr)
    return lambda step: own.rate(max(0, step - start))


def describe(step: AdversarialStep) -> str:
    """All that a training by this loss depends on, for the `subject` of its checkpoints."""
    frozen = [fingerprint(network) for network in (step.lpips, step.logits) if network is not None]
    first = [] if step.opponent is None else [fingerprint(step.opponent.network)]
    return f"{step.weights}, networks {', '.join(frozen + first)}"


def _discriminator(adversary: Adversary, frozen: Path | None, image_size: int, device: torch.device) -> nn.Module:
    if adversary.kind == "dino" and frozen is not None:
        sees = vit.from_tensors(checkpoint.read(frozen).tensors, str(frozen))
        network = DinoDiscriminator(sees.to(device))
        several = count() > 1 and device.type == "cuda"  # torch synchronizes the normalization of GPUs only
        return nn.SyncBatchNorm.convert_sync_batchnorm(network) if several else network
    if adversary.kind == "blur":
        return BlurDiscriminator()
    # Each level halves the sides, and the two last convolutions take a pixel each.
    return PatchGAN(levels=3 if image_size >= 24 else 2 if image_size >= 12 else 1)
