"""Condition contrastive alignment: a generator learns to tell an image's class from other classes.

Source: arXiv:2410.09347. Against a frozen copy of the model, g(x, y) = log p(x|y) - log p_reference(x|y), and
loss = -log sigmoid(beta g(x, y)) - lambda log sigmoid(-beta g(x, y')), where y' is another image's class.
Shapes: B images, L tokens.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from avarc_cli.errors import UsageError
from avarc_cli.models.var.added import LowRank, adapted_linears
from avarc_cli.models.var.network import VAR
from avarc_cli.tokenizers.vqvae import MultiScaleQuantizer
from avarc_cli.train.generator import TokenBatches, token_log_prob
from avarc_cli.train.loop import Progress, Recipe, fingerprint, train


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """beta: how fast a difference of log-likelihoods (nats an image) saturates; weight: lambda, of the negatives;
    class_dropout: share of images that stay "unconditional" and count as positives."""

    beta: float = 0.02
    weight: float = 1.0
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not (self.beta > 0 and self.weight >= 0 and 0 <= self.class_dropout < 1):
            raise UsageError(f"{self}", "beta is above 0, the weight at least 0, class dropout in [0, 1)")

    def loss(self, gain_2B: Tensor, negative_B: Tensor) -> Tensor:
        """The mean loss an image.

        Args:
            gain_2B: g in nats of the images under their own classes, then of the same under others'.
            negative_B: which of the second half are negatives; the others count as positives with weight 1.
        """
        own_B, other_B = (self.beta * gain_2B).chunk(2)
        second_B = torch.where(negative_B, -self.weight * F.logsigmoid(-other_B), -F.logsigmoid(other_B))
        return (second_B - F.logsigmoid(own_B)).mean() / max(self.weight, 1.0)


def train_cca(
    reference: VAR,
    student: VAR,
    quantizer: MultiScaleQuantizer,
    data: TokenBatches,
    recipe: Recipe,
    contrast: Contrast,
    checkpoint: Path,
    progress: Progress,
) -> None:
    """Train `student` in place: the trainable parameters of a model that begins equal to `reference`.

    Raises: as `train.loop.train`.
    """
    reference.requires_grad_(False)
    device, unconditional = reference.pos_1LC.device, reference.config.num_classes

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        tokens_BL, label_B, generator = data.batch(step, recipe.batch_size)
        tokens_2BL = tokens_BL.to(device).repeat(2, 1)
        other_B = label_B.roll(1)
        dropped_B = torch.rand(len(label_B), generator=generator) < contrast.class_dropout
        class_2B = torch.cat([label_B, other_B]).masked_fill(dropped_B.repeat(2), unconditional).to(device)
        with torch.no_grad():
            before_2B = token_log_prob(reference, quantizer, tokens_2BL, class_2B).sum(1)
        gain_2B = token_log_prob(student, quantizer, tokens_2BL, class_2B).sum(1) - before_2B
        negative_B = (~dropped_B & (other_B != label_B)).to(device)
        loss = contrast.loss(gain_2B, negative_B)
        own, other = gain_2B.detach().chunk(2)
        return loss, {"loss": loss.item(), "own": own.mean().item(), "others": other.mean().item()}

    weights = sum(p.numel() for p in student.parameters() if p.requires_grad)
    models = f"{weights} weights of {fingerprint(reference)}, tokens of {fingerprint(quantizer)}"
    subject = f"CCA {contrast}, {models}, {reference.config} on {data}"
    train(student, loss_of_step, recipe, checkpoint, progress, subject=subject)


def student_of(var: VAR, rank: int, generator: torch.Generator) -> VAR:
    """A copy to train, which begins equal to `var`: all of it, or, with a rank, LoRA of its attention and MLP alone."""
    student = copy.deepcopy(var)
    if not rank:
        return student.requires_grad_(True)
    student.requires_grad_(False)
    for name in adapted_linears(var.config, "lora"):
        linear = cast("nn.Linear", student.get_submodule(name))
        rows, columns = linear.weight.shape
        a = torch.randn(rank, columns, generator=generator) / columns**0.5
        low_rank = LowRank(a, torch.zeros(rows, rank), 1.0).to(linear.weight.device)
        parametrize.register_parametrization(linear, "weight", low_rank)
    return student


def adapter_of(student: VAR) -> dict[str, tuple[Tensor, Tensor]]:
    """What a LoRA student has learnt: name of a linear -> (A (r, in), B (out, r)); W + B A is its weight."""
    end = ".parametrizations.weight.0"
    parts = {name.removesuffix(end): m for name, m in student.named_modules() if isinstance(m, LowRank)}
    return {name: (part.a.detach(), part.b.detach()) for name, part in parts.items()}
