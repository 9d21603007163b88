"""Fitting p(x | new class): its embedding and low-rank changes are trained, every tensor of the base is frozen.

Shapes: N images, S samples (the image and its augmented versions), L tokens, K classes, C width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avarc_cli.added_classes import AddedClass
from avarc_cli.incremental.examples import Examples, TokenPool
from avarc_cli.layers.linears import plain_weights
from avarc_cli.layers.rows import Rows
from avarc_cli.progress import MetricsProgress
from avarc_cli.settings import METHODS, check_method
from avarc_cli.train.loop import train
from avarc_cli.train.recipe import Recipe
from avarc_cli.trainable import TrainableModel
from avarc_cli.words import counted

MIN_TO_VALIDATE = 5  # images; a class with fewer is validated on the images that it is trained on
VALIDATION_FRACTION = 0.2  # of the images: for early stopping, and for fitting the offset
EVALUATIONS = 12  # of the validation loss in a training of full length
PATIENCE = 3  # evaluations without improvement that end a training
# Chosen on the digits, by hand:
STEPS = {"embedding": 200, "adaln": 300, "lora": 300}
LEARNING_RATE = {"embedding": 3e-2, "adaln": 1e-2, "lora": 3e-3}
assert set(STEPS) == set(LEARNING_RATE) == set(METHODS)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a class is fitted. Raises: UsageError for an unknown method and numbers out of range."""

    method: str = "lora"  # one of added_classes.METHODS
    rank: int = 8  # of the low-rank changes
    steps: int | None = None  # None for the method's own
    lr: float | None = None  # peak learning rate; None for the method's own
    batch_size: int = 32  # images per step
    seed: int = 0  # of initialization, order and split

    def __post_init__(self) -> None:
        check_method(self.method)
        self.recipe()

    def recipe(self) -> Recipe:
        """The training recipe."""
        return Recipe(
            steps=STEPS[self.method] if self.steps is None else self.steps,
            lr=LEARNING_RATE[self.method] if self.lr is None else self.lr,
            batch_size=self.batch_size,
            seed=self.seed,
            warmup=0.05,
            ema_decay=0.95,
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """One fitted class."""

    added: AddedClass  # its parameters
    closest: int  # id of the class that it started from
    steps: int  # of training, up to the best validation loss
    bits_before: float  # per token of the validation images, under the closest class
    bits_after: float  # the same under the new class
    validation: np.ndarray  # rows of the validation images


def validation_split(count: int, seed: int) -> np.ndarray:
    """Rows of the validation images, sorted; every row when there are too few images to leave any out of training."""
    if count < MIN_TO_VALIDATE:
        return np.arange(count)
    chosen = np.random.default_rng([seed, count]).permutation(count)[: max(1, round(VALIDATION_FRACTION * count))]
    return np.sort(chosen)


def few_images(name: str, count: int) -> str:
    """What a user should know about a class of so few images; "" where they are enough."""
    if count >= MIN_TO_VALIDATE:
        return ""
    why = "no image is left out of training to decide when it ends"
    return f"class '{name}' has only {counted(count, 'image')} (fewer than {MIN_TO_VALIDATE}): {why}"


def fit_class(
    base: TrainableModel, examples: Examples, closest: int, options: FitOptions, progress: MetricsProgress
) -> Fitted:
    """Fit one class to the images of `examples`, which are all of that class.

    Args:
        closest: id of the class that training starts from.
    Raises: UsageError for options out of range; AvarcError when training diverges; Interrupted.
    """
    recipe, device = options.recipe(), next(base.network.parameters()).device
    validation = validation_split(len(examples), options.seed)
    few = len(examples) < MIN_TO_VALIDATE
    trained = examples if few else examples.take(np.setdiff1d(np.arange(len(examples)), validation))
    generator = torch.Generator().manual_seed(options.seed)
    rank = 1 if options.method == "adaln" else options.rank  # one class gives its modulation one input
    added = AddedClass.new(base, closest, options.method, rank=rank, generator=generator)
    pool = TokenPool(trained, options.seed)
    with plain_weights(base.network):
        model = added.attach(base)

        def loss(tokens_BL: Tensor) -> Tensor:
            class_B = torch.zeros(len(tokens_BL), dtype=torch.int64, device=device)
            return -model.token_log_prob(tokens_BL.to(device), class_B).mean()

        def loss_of_rows(step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
            value = loss(pool.batch(step, rows)[0])
            return value, {"bits/token": value.item() / math.log(2)}

        stopping = _EarlyStopping(added, lambda: loss(examples.tokens[validation, 0]), recipe.steps)
        before = stopping.evaluate(0, added.state_dict())
        train(added, loss_of_rows, recipe, None, progress, subject={}, should_continue=stopping)
    added.load_state_dict(stopping.best)
    return Fitted(
        added=added,
        closest=closest,
        steps=stopping.best_step,
        bits_before=before / math.log(2),
        bits_after=stopping.lowest / math.log(2),
        validation=validation,
    )


class _EarlyStopping:
    """Evaluates the validation loss at intervals, keeps the best weights, and ends a training that no longer helps."""

    def __init__(self, added: AddedClass, loss: Callable[[], Tensor], steps: int) -> None:
        self.added, self.loss, self.every = added, loss, max(1, steps // EVALUATIONS)
        self.lowest, self.best_step = math.inf, 0
        self.best: dict[str, Tensor] = {}

    def __call__(self, step: int, averaged: dict[str, Tensor]) -> bool:
        """Whether to continue after this step."""
        if step % self.every == 0:
            self.evaluate(step, averaged)
        return step - self.best_step < (PATIENCE + 1) * self.every

    @torch.no_grad()
    def evaluate(self, step: int, weights: dict[str, Tensor]) -> float:
        """The validation loss with these weights, in nats per token; the added class keeps its own."""
        current = _copy(self.added.state_dict())
        self.added.load_state_dict(weights)
        loss = self.loss().item()
        if loss < self.lowest:
            self.lowest, self.best_step, self.best = loss, step, _copy(weights)
        self.added.load_state_dict(current)
        return loss


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in weights.items()}
