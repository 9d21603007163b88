"""The published training of a tokenizer: pixels, perceptual networks, and a discriminator with an optimizer of its own.

A step goes as in LlamaGen's, TiTok's and VAR's code: the gradient of the tokenizer's loss, with the discriminator
frozen; then one update of the discriminator on the same reconstructions, and one of the tokenizer by the training loop.
Neither depends on the other.

Shapes: B images, H rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.family import PixelLoss
from avarc_cli.layers.collectives import add_up, count
from avarc_cli.layers.loss_weights import Adversary, LossWeights
from avarc_cli.train.discriminators import augment
from avarc_cli.train.discriminators.losses import LeCam, adaptive_weight, hinge

BLUR_RAMPS = 2  # ramps until the discriminator sees sharp images


class Part(NamedTuple):
    """A part of a batch that the discriminator is to learn from."""

    real: Tensor
    fake: Tensor
    step: int
    generator: torch.Generator
    """The step's own."""


@dataclass
class Opponent:
    """A discriminator with its optimizer and all that must be kept when a training is interrupted."""

    network: nn.Module
    """Of `train.discriminators`: gives logits of images, which it takes in the range that it says."""
    recipe: Adversary
    start: int
    """The first step (from 0) at which it counts."""
    ramp: int = 0
    """Steps over which its weight rises."""
    lecam: LeCam = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        parameters = list(self.network.parameters())
        self.lecam = LeCam(parameters[0].device)
        decay = self.recipe.weight_decay
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=self.recipe.betas)

    def strength(self, step: int) -> float:
        """Share of its full weight at a step (from 0)."""
        if step < self.start:
            return 0.0
        return 1.0 if self.ramp == 0 else min(1.0, (step - self.start) / self.ramp)

    def runs(self, step: int) -> bool:
        """Whether it sees the batch of a step."""
        return self.recipe.runs_before_start or self.strength(step) > 0

    def judge(self, images: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Logits of images in [-1, 1], as it sees them at a step."""
        if self.recipe.augmented:
            images = augment.augment(augment.blur(images, self._blur(step)), generator)
        return self._logits(images, generator)

    def _blur(self, step: int) -> float:
        done = (step - self.start) / (BLUR_RAMPS * self.ramp) if self.ramp else 1.0
        return max(0.0, 1.0 - done)

    def _logits(self, images: Tensor, generator: torch.Generator) -> Tensor:
        logits: Tensor = self.network((images + 1) / 2 if self.network.unit_range else images, generator)
        return logits

    def judged(self, fake: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """The loss of what made `fake`: -mean D, without gradients for the discriminator."""
        self.network.requires_grad_(False)
        # LlamaGen's runs in training mode: its batch normalization uses the batch. VAR's uses its running averages.
        self.network.train(not self.recipe.augmented)
        loss = -self.judge(fake, step, generator).mean()
        self.network.train()
        self.network.requires_grad_(True)
        return loss

    def loss(self, part: Part) -> tuple[Tensor, dict[str, float]]:
        """Its own loss, and numbers to show."""
        recipe, (real, fake, step, generator) = self.recipe, part
        if recipe.augmented:  # together, as one batch for its normalization
            on_real, on_fake = self.judge(torch.cat([real, fake]), step, generator).chunk(2)
        else:
            on_real, on_fake = (self.judge(images, step, generator) for images in (real, fake))
        loss = hinge(on_real, on_fake, halved=recipe.halved)
        if recipe.lecam:
            loss = loss + recipe.lecam * self.lecam(on_real, on_fake)
        if recipe.consistency:
            changed = self._logits(augment.augment(torch.cat([real, fake]), generator), generator)
            loss = loss + recipe.consistency * F.mse_loss(changed, torch.cat([on_real, on_fake]))
        right = ((on_real > 0).float().mean() + (on_fake < 0).float().mean()) / 2
        counts = float(step >= self.start)
        return counts * recipe.own_weight * loss, {"d_right": right.item()}

    def update(self, parts: Sequence[Part], rate: float) -> dict[str, float]:
        """One step of the optimizer on the parts of a batch; numbers to show, of which "d_norm" is before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = sum(len(part.real) for part in parts)
        shown: dict[str, float] = {}
        for part in parts:
            share = len(part.real) / total
            loss, values = self.loss(part)
            (share * loss).backward()
            for name, value in {"d_loss": loss.item(), **values}.items():
                shown[name] = shown.get(name, 0.0) + share * value
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad = add_up(parameter.grad) / count()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        return shown | {"d_norm": norm.item()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "moments": self.optimizer.state_dict()["state"],
            "lecam": torch.stack([self.lecam.real, self.lecam.fake]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: LookupError, TypeError, ValueError, RuntimeError for another one's state."""
        self.network.load_state_dict(state["network"])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, moments in state["moments"].items():
            if moments["exp_avg"].shape != parameters[number].shape:
                raise ValueError(f"the discriminator's moments {number} have another shape")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["moments"], "param_groups": groups})
        self.lecam.real, self.lecam.fake = state["lecam"].to(self.lecam.real.device).unbind()


class AdversarialStep:
    """A `family.TokenizerLoss`: the terms of a published loss for which networks are at hand."""

    def __init__(
        self,
        loss: PixelLoss,
        rate: Callable[[int], float],
        *,
        weights: LossWeights | None = None,
        lpips: nn.Module | None = None,
        logits: nn.Module | None = None,
        opponent: Opponent | None = None,
    ) -> None:
        """Args:
        rate: the discriminator's learning rate at a step, from 0. weights: None for the published one.
        lpips: an `LPIPS`. logits: a `LogitsLoss`. opponent: the discriminator. None leaves out the term.
        """
        self.loss, self.rate, self.weights = loss, rate, weights or loss.published
        self.lpips, self.logits, self.opponent = lpips, logits, opponent
        self.last_update: dict[str, float] = {}
        """Numbers to show of the discriminator's last update."""
        self._parts: list[Part] = []  # of a batch, for the discriminator

    def __call__(
        self, images: Tensor, step: int, steps: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """As `family.TokenizerLoss`; the discriminator has no gradient."""
        made = self.loss.reconstruct(images, step, steps, generator)
        decoded = made.images.float()  # also where the network computes in half precision
        error, shown = self.error(decoded, images)
        total, shown = error + made.loss, shown | made.shown
        if not torch.is_grad_enabled():  # validation images, which the discriminator does not see
            return total, shown
        if self.opponent and self.opponent.runs(step):
            recipe = self.opponent.recipe
            judged = self.opponent.judged(decoded, step, generator)
            factor = torch.ones((), device=judged.device)
            if recipe.adaptive:
                last = self.loss.last_weight
                factor = adaptive_weight(error, judged, last, recipe.adaptive, recipe.adaptive_epsilon)
                shown["adaptive"] = factor.item()
            total = total + self.opponent.strength(step) * recipe.weight * factor * judged
            self._parts.append(Part(images, decoded.detach(), step, generator))
        return total, shown | self.last_update

    def error(self, decoded: Tensor, images: Tensor) -> tuple[Tensor, dict[str, float]]:
        """What the discriminator's gradient is compared with: pixels and perceptual networks; and numbers to show."""
        weights = self.weights
        squared = F.mse_loss(decoded, images)
        error, shown = weights.squared * squared, {"rmse": squared.item() ** 0.5}
        if weights.absolute:
            error = error + weights.absolute * F.l1_loss(decoded, images)
        if self.lpips and images.shape[-1] >= weights.lpips_from:
            distance = self.lpips(images, decoded).mean()
            error, shown["lpips"] = error + weights.lpips * distance, distance.item()
        if self.logits:
            distance = self.logits(images, decoded)
            error, shown["logits"] = error + weights.logits * distance, distance.item()
        return error, shown

    def before_update(self, step: int, steps: int) -> None:
        """As `family.TokenizerLoss.before_update`: the discriminator learns from the batch."""
        self.loss.before_update(step, steps)
        if self.opponent and self._parts:
            self.last_update = self.opponent.update(self._parts, self.rate(step))
        self._parts = []

    def state_dict(self) -> dict[str, Any]:
        """As `family.TokenizerLoss.state_dict`."""
        own = {"opponent": self.opponent.state_dict()} if self.opponent else {}
        return {"loss": self.loss.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: LookupError, TypeError, ValueError, RuntimeError for another training's state."""
        self.loss.load_state_dict(state["loss"])
        if self.opponent:
            self.opponent.load_state_dict(state["opponent"])
