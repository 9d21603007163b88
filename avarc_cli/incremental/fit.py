"""Fitting p(x | new class): its row and low-rank changes are trained, every tensor of the base is frozen.

Shapes: N images, S samples (the image and its variants), L tokens, K classes, C width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avarc_cli.errors import UsageError
from avarc_cli.incremental.examples import Examples, TokenPool
from avarc_cli.models.var.added import METHODS, AddedClass
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.scoring.exhaustive import log_likelihoods
from avarc_cli.train.generator import token_loss
from avarc_cli.train.loop import Progress, Recipe, train

FEW = 5  # images; with fewer, none can be spared to stop by
HELD_OUT = 0.2  # share of the images that training stops by and that the offset is fitted on
LOOKED_AT = 32  # images that the closest class is chosen by
CHECKS = 12  # looks at the held-out images in a full-length training
PATIENCE = 3  # looks without improvement that end it
STEPS = {"embedding": 200, "adaln": 300, "lora": 300}
RATE = {"embedding": 3e-2, "adaln": 1e-2, "lora": 3e-3}
assert set(STEPS) == set(RATE) == set(METHODS)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a class is fitted. rank: of the low-rank changes; steps, lr: None for the method's own.

    Raises: UsageError for an unknown method and numbers out of range.
    """

    method: str = "lora"
    rank: int = 8
    steps: int | None = None
    lr: float | None = None
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"no method '{self.method}'", f"there are {', '.join(METHODS)}")
        self.recipe()

    def recipe(self) -> Recipe:
        """The training recipe."""
        return Recipe(
            steps=STEPS[self.method] if self.steps is None else self.steps,
            lr=RATE[self.method] if self.lr is None else self.lr,
            batch_size=self.batch_size,
            seed=self.seed,
            warmup=0.05,
            average=0.95,
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """One fitted class.

    closest: class id it started from; steps: of the training that it is the result of; bits_before, bits_after: per
    token of the held-out images, under the closest class and under the new one; held_out: rows of those images.
    """

    added: AddedClass
    closest: int
    steps: int
    bits_before: float
    bits_after: float
    held_out: np.ndarray


def hold_out(count: int, seed: int) -> np.ndarray:
    """Rows of the images that are kept from training, sorted; all of them when there are too few to keep any."""
    if count < FEW:
        return np.arange(count)
    chosen = np.random.default_rng([seed, count]).permutation(count)[: max(1, round(HELD_OUT * count))]
    return np.sort(chosen)


def closest_class(base: VARLikelihood, tokens_NL: Tensor, device: torch.device) -> int:
    """The class of the base under which these images are likeliest."""
    classes = range(base.num_classes)
    return int(log_likelihoods(base, tokens_NL[:LOOKED_AT], classes, device=device).mean(0).argmax())


def fit_class(base: VARLikelihood, examples: Examples, options: FitOptions, progress: Progress) -> Fitted:
    """Fit one class to the images of `examples`, all of which are its own.

    Raises: UsageError for options out of range; AvarcError when training diverges; Interrupted.
    """
    recipe, device = options.recipe(), base.var.pos_1LC.device
    held_out = hold_out(len(examples), options.seed)
    few = len(examples) < FEW
    trained = examples if few else examples.take(np.setdiff1d(np.arange(len(examples)), held_out))
    closest = closest_class(base, examples.tokens[:, 0], device)
    generator = torch.Generator().manual_seed(options.seed)
    start_C = base.var.class_emb.weight[closest]
    rank = 1 if options.method == "adaln" else options.rank  # one class gives its modulation one input
    added = AddedClass.new(base.var.config, start_C, options.method, rank, generator)
    var, pool = added.attach(base.var), TokenPool(trained, options.seed)

    def loss(tokens_BL: Tensor) -> Tensor:
        class_B = torch.zeros(len(tokens_BL), dtype=torch.int64, device=device)
        return token_loss(var, base.quantizer, tokens_BL.to(device), class_B)

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        value = loss(pool.batch(step, options.batch_size)[0])
        return value, {"bits/token": value.item() / math.log(2)}

    watch = _Watch(added, lambda: loss(examples.tokens[held_out, 0]), recipe.steps)
    before = watch.look(0, added.state_dict())
    train(added, loss_of_step, recipe, None, progress, subject="", go_on=watch)
    added.load_state_dict(watch.best)
    return Fitted(added, closest, watch.best_step, before / math.log(2), watch.lowest / math.log(2), held_out)


class _Watch:
    """Looks at the held-out images now and then, keeps the best weights, and ends a training that no longer helps."""

    def __init__(self, added: AddedClass, loss: Callable[[], Tensor], steps: int) -> None:
        self.added, self.loss, self.every = added, loss, max(1, steps // CHECKS)
        self.lowest, self.best_step = math.inf, 0
        self.best: dict[str, Tensor] = {}

    def __call__(self, step: int, averaged: dict[str, Tensor]) -> bool:
        """Whether to go on after this step."""
        if step % self.every == 0:
            self.look(step, averaged)
        return step - self.best_step < (PATIENCE + 1) * self.every

    @torch.no_grad()
    def look(self, step: int, weights: dict[str, Tensor]) -> float:
        """The held-out loss under these weights, in nats per token; the addition keeps its own."""
        current = _copy(self.added.state_dict())
        self.added.load_state_dict(weights)
        loss = self.loss().item()
        if loss < self.lowest:
            self.lowest, self.best_step, self.best = loss, step, _copy(weights)
        self.added.load_state_dict(current)
        return loss


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in weights.items()}
