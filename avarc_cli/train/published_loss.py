"""The terms of a tokenizer's published loss that are trained with, and the files of their frozen networks.

A term is trained with when its weight is not 0 and its networks are there: named by the user, or downloaded
(`zoo.networks`). A discriminator is a separate choice.
"""

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
from avarc_cli.zoo import checkpoint, networks
from avarc_cli.zoo.checkpoint import Checkpoint

SMALLEST_FOR_VGG = 16  # pixels: it halves the sides four times
FROZEN = {"vgg": networks.VGG16, "lpips": networks.LPIPS, "convnext": networks.CONVNEXT, "dino": networks.DINO}
"""The networks that fields of `Terms` are files of."""
OF_LPIPS = ("vgg", "lpips")


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
    lpips_weight: float | None = None
    """In place of what is published; 0 leaves out the term."""
    convnext_weight: float | None = None
    """As `lpips_weight`."""
    adversarial: bool = False
    discriminator_lr: float | None = None
    """Of the discriminator's training, in place of what is published: the peak rate,"""
    discriminator_betas: tuple[float, float] | None = None
    discriminator_weight_decay: float | None = None
    discriminator_start: float | None = None
    """and the fraction of the steps after which it counts."""

    def are_given(self) -> bool:
        """Whether there is any."""
        return self.adversarial or any(getattr(self, name) for name in FROZEN)

    def with_downloaded(self, published: LossWeights, image_size: int) -> Terms:
        """The terms with the files that were downloaded, where their loss needs them and the user names none.

        Those of terms that the user gives the weight 0 are removed.
        """
        weights = self.changed(published)
        has_vit = weights.adversary.kind == "dino"
        files: dict[str, Any] = {}
        for names, weight, is_needed in (
            (OF_LPIPS, self.lpips_weight, weights.lpips and image_size >= _smallest(weights)),
            (("convnext",), self.convnext_weight, weights.logits),
            (("dino",), None, self.adversarial and has_vit),
        ):
            named = [getattr(self, name) for name in names]
            found = [file or networks.downloaded(FROZEN[name]) for name, file in zip(names, named, strict=True)]
            if weight == 0:
                files |= dict.fromkeys(names)
            elif all(found) and (any(named) or weight or is_needed):
                files |= dict(zip(names, found, strict=True))
        return replace(self, **files)

    def changed(self, published: LossWeights) -> LossWeights:
        """The published loss with the weights and the discriminator that are asked for."""
        if self.lpips_weight is not None:
            published = replace(published, lpips=self.lpips_weight)
        if self.convnext_weight is not None:
            published = replace(published, logits=self.convnext_weight)
        asked = {name: getattr(self, f"discriminator_{name}") for name in ("lr", "betas", "weight_decay", "start")}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return replace(published, adversary=replace(published.adversary, **given))


def _smallest(weights: LossWeights) -> int:
    """Side in pixels of the images that LPIPS compares."""
    return max(SMALLEST_FOR_VGG, weights.lpips_from)


def left_out(published: LossWeights, terms: Terms, image_size: int) -> str:
    """The terms of the published loss that are not trained with, and what adds them; "" for none."""
    if terms.lpips_weight == 0:
        of_lpips = "--lpips-weight 0"
    elif image_size < _smallest(published):
        of_lpips = f"for images from {_smallest(published)} pixels on"
    else:
        of_lpips = "avarc download vgg16 lpips, or --vgg and --lpips"
    of_logits = "--convnext-weight 0" if terms.convnext_weight == 0 else "avarc download convnext-small, or --convnext"
    adversary = "--adversarial"
    if published.adversary.kind == "dino" and networks.downloaded(networks.DINO) is None:
        adversary += " with avarc download dino-vits16, or with --dino"
    missing = [
        f"{name} ({what})"
        for name, is_left_out, what in (
            ("LPIPS", published.lpips and (not terms.lpips or image_size < published.lpips_from), of_lpips),
            ("the logits of ConvNeXt", published.logits and not terms.convnext, of_logits),
            ("a discriminator", not terms.adversarial, adversary),
        )
        if is_left_out
    ]
    return f"the published loss is trained without {', '.join(missing)}" if missing else ""


def used(terms: Terms, named: Terms) -> str:
    """The frozen networks that are trained with, and where they are; "" for none.

    Args:
        named: the terms before `Terms.with_downloaded`.
    """
    parts = []
    for title, names, without in (
        ("LPIPS", OF_LPIPS, "--lpips-weight 0"),
        ("the logits of ConvNeXt", ("convnext",), "--convnext-weight 0"),
        ("a discriminator", ("dino",), "--no-adversarial"),
    ):
        files = [getattr(terms, name) for name in names]
        if all(files):
            own = all(getattr(named, name) for name in names)
            parts.append(f"{title} ({' and '.join(map(str, files))}{'' if own else f'; {without} leaves it out'})")
    return f"the loss uses {', '.join(parts)}" if parts else ""


def check(published: LossWeights, terms: Terms, image_size: int) -> None:
    """Raises: UsageError for files that are missing, or of no use in this loss."""
    check_lpips(terms.vgg, terms.lpips)
    weights = terms.changed(published)
    for option, weight, file, names in (
        ("--lpips-weight", terms.lpips_weight, terms.lpips, "vgg16 lpips"),
        ("--convnext-weight", terms.convnext_weight, terms.convnext, "convnext-small"),
    ):
        if weight and not file:
            why = f"{names.replace(' ', ' and ')} are neither downloaded nor named"
            raise UsageError(f"{option} has no network to use", why, f"avarc download {names}")
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
            "leave out --lpips, or add --lpips-weight 0",
        )
    if has_vit and terms.adversarial != (terms.dino is not None):
        there, missing = ("--adversarial", "--dino") if terms.adversarial else ("--dino", "--adversarial")
        raise UsageError(
            f"{there} needs {missing} here",
            "this tokenizer's discriminator sees through a frozen ViT-S/16, that of DINO",
            f"add {missing}" + (", or: avarc download dino-vits16" if missing == "--dino" else ""),
        )


def make(
    loss: PixelLoss, terms: Terms, recipe: Recipe, image_size: int, device: torch.device
) -> tuple[AdversarialStep, dict[str, str]]:
    """The published loss with these terms, which `check` has accepted, on a device. Uses torch's seed.

    Returns: the loss, and the sha256 of the files of frozen networks, by the networks' names.
    Raises: CheckpointError for a file that cannot be read, or is of another network.
    """
    weights = terms.changed(loss.published)
    read = {name: checkpoint.read(path) for name in FROZEN if (path := getattr(terms, name)) is not None}
    parts: dict[str, Any] = {}
    if "lpips" in read:
        source = f"{terms.vgg} with {terms.lpips}"
        parts["lpips"] = lpips.from_tensors(read["vgg"].tensors, read["lpips"].tensors, source).to(device)
    if "convnext" in read:
        parts["logits"] = convnext.from_tensors(read["convnext"].tensors, str(terms.convnext)).to(device)
    rate: Callable[[int], float] = recipe.rate
    if terms.adversarial:
        adversary = weights.adversary
        network = _discriminator(adversary, read.get("dino"), image_size, device).to(device)
        start, ramp = (round(share * recipe.steps) for share in (adversary.start, adversary.ramp))
        parts["opponent"] = Opponent(network, adversary, start=start, ramp=ramp)
        rate = _rate(adversary, recipe, start)
    digests = {FROZEN[name]: each.sha256 for name, each in read.items()}
    return AdversarialStep(loss, rate, weights=weights, **parts), digests


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


def _discriminator(adversary: Adversary, frozen: Checkpoint | None, image_size: int, device: torch.device) -> nn.Module:
    if adversary.kind == "dino" and frozen is not None:
        sees = vit.from_tensors(frozen.tensors, str(frozen.path))
        network = DinoDiscriminator(sees.to(device))
        several = count() > 1 and device.type == "cuda"  # torch synchronizes the normalization of GPUs only
        return nn.SyncBatchNorm.convert_sync_batchnorm(network) if several else network
    if adversary.kind == "blur":
        return BlurDiscriminator()
    # Each level halves the sides, and the two last convolutions take a pixel each.
    return PatchGAN(levels=3 if image_size >= 24 else 2 if image_size >= 12 else 1)
