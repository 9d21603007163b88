"""Training of a class-conditional generator: mean cross-entropy over positions, the class dropped now and then.

Shapes: B images, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from avarc_cli import families
from avarc_cli.data.datasets import ImageSet
from avarc_cli.errors import UsageError
from avarc_cli.layers.dropout import set_dropout
from avarc_cli.layers.precision import tf32
from avarc_cli.likelihood import NetworkModel
from avarc_cli.loaded import LoadedTokenizer, check_kind
from avarc_cli.outputs import WEIGHTS, check_output
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.train.images import Augment, TrainingImages
from avarc_cli.train.loop import fingerprint, train
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.resume import resume_file
from avarc_cli.train.save import save_generator
from avarc_cli.trainable import TrainableModel


class TokenBatches(Protocol):
    """What a generator is trained on; `str` of it identifies the data."""

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Tokens (B, L) and class ids (B,), both int64, and the step's own generator: a function of the step alone."""
        ...


@dataclass(frozen=True)
class EncodedImages:
    """Batches of augmented images, encoded when they are needed, on the tokenizer's device."""

    tokenizer: LoadedTokenizer  # what encodes
    images: TrainingImages  # augmented

    def __str__(self) -> str:
        return str(self.images)

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """As `TokenBatches.batch`."""
        x, label_B, generator = self.images.batch(step, batch_size)
        network = self.tokenizer.network
        with torch.no_grad(), tf32(False):
            tokens_BL = network.tokenize(network.encode(x.to(self.tokenizer.device)))
        return tokens_BL, label_B, generator


def train_generator(
    images: ImageSet,
    out: Path,
    tokenizer: LoadedTokenizer,
    shape: Mapping[str, Any],
    recipe: Recipe,
    *,
    family: str,
    augment: Augment | None = None,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
) -> TrainableModel:
    """Train a generator of the tokens of labelled images and write it to `out` (safetensors), replacing it.

    It runs on the tokenizer's device, and resumes as `train_tokenizer` does.

    Args:
        shape: of the network, in the family's own terms (`GeneratorFamily.new`).
        family: a name in `families.GENERATORS`.
        augment: None for random crops.
        say: as for `train_tokenizer`.
    Raises: UsageError for images without a class; otherwise as `train_tokenizer`.
    """
    check_output(out, WEIGHTS, overwrite=True)
    if not images.class_names or (images.labels < 0).any():
        raise UsageError(
            "images without a class", "a class-conditional model needs one for each", "use class sub-folders"
        )
    batches = TrainingImages(images, tokenizer.image_size, augment or Augment(), seed=recipe.seed)
    model = new_generator(family, tokenizer, len(images.class_names), shape, seed=recipe.seed)
    checkpoint = resume_file(out)
    data = EncodedImages(tokenizer, batches)
    fit(model, tokenizer, data, recipe, checkpoint, progress, say=say)
    save_generator(model, out, class_names=images.class_names, tokenizer_sha256=tokenizer.sha256)
    checkpoint.unlink(missing_ok=True)
    return model


def prepare(model: NetworkModel, recipe: Recipe) -> None:
    """Give the network the recipe's dropout. Raises: UsageError for what the recipe asks and the model has not."""
    objective = recipe.objective(0, len(model.segment_ends))
    objective.check(model.trained_with, f"a model of the family {model.family}")
    set_dropout(model.network, recipe.dropout)


def seed_dropout(recipe: Recipe, generator: torch.Generator) -> None:
    """Make the dropout of a step a function of the step's own generator: torch draws it from its global ones."""
    if recipe.dropout:
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))


def new_generator(
    family: str, tokenizer: LoadedTokenizer, num_classes: int, shape: Mapping[str, Any], *, seed: int
) -> TrainableModel:
    """An initialized generator of that tokenizer's tokens, on its device.

    Raises: UsageError for a tokenizer of continuous tokens where the family reads codes, or the reverse.
    """
    maker = families.GENERATORS.get(family)
    check_kind(f"a {maker.title}", maker.continuous, tokenizer)
    torch.manual_seed(seed)
    return maker.new(tokenizer.network, num_classes, **shape)


def fit(
    model: TrainableModel,
    tokenizer: LoadedTokenizer,
    data: TokenBatches,
    recipe: Recipe,
    checkpoint: Path,
    progress: MetricsProgress,
    *,
    say: Notify = no_message,
) -> None:
    """Train a generator in place; resumes from `checkpoint`.

    Raises: UsageError for what the recipe asks and the model does not know; as `loop.train`.
    """
    segments = len(model.segment_ends)
    prepare(model, recipe)
    network = model.network.requires_grad_(True)
    device = next(network.parameters()).device

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        tokens_BL, label_B, generator = data.batch(step, recipe.batch_size)
        dropped_B = torch.rand(len(label_B), generator=generator) < recipe.class_dropout
        class_B = torch.where(dropped_B, model.num_classes, label_B)
        objective = recipe.objective(step, segments)
        draw = model.draw(len(label_B), objective, generator)
        seed_dropout(recipe, generator)
        loss = model.training_loss(tokens_BL.to(device), class_B.to(device), objective, draw).mean
        return loss, {"bits/token": loss.item() / math.log(2)}

    made_of = f"tokens of {fingerprint(tokenizer.network)}, starting from {fingerprint(network)}"
    subject = f"{model.config} on {data}, {made_of}, class dropout {recipe.class_dropout}"
    train(network, loss_of_step, recipe, checkpoint, progress, subject=subject, decays=model.decays, say=say)
