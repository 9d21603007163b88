"""Training of a class-conditional generator: mean cross-entropy over positions, the class dropped now and then.

Shapes: B images, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from avarc_cli import families
from avarc_cli.data.datasets import ImageSet
from avarc_cli.errors import UsageError
from avarc_cli.layers.dropout import set_dropout
from avarc_cli.layers.precision import tf32
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.sampling import generator_of
from avarc_cli.likelihood import NetworkModel
from avarc_cli.loaded import LoadedTokenizer, check_kind
from avarc_cli.outputs import WEIGHTS, check_output
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.train.images import Augment, TrainingImages, ValidationImages
from avarc_cli.train.loop import Trained, conclude, fingerprint, train
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.resume import resume_file
from avarc_cli.train.run import Run
from avarc_cli.train.save import save_generator
from avarc_cli.train.updates import LossOfRows
from avarc_cli.train.validation import Validation, labelled_as
from avarc_cli.train.watch import Watched, grid
from avarc_cli.trainable import TrainableModel

DRAWN = 8  # classes of a picture of samples
DRAWN_OF_EACH = 2


class TokenBatches(Protocol):
    """What a generator is trained on."""

    @property
    def subject(self) -> Mapping[str, str]:
        """What identifies the data, by name: a training of other data does not go on where this one stopped."""
        ...

    def batch(self, step: int, rows: Rows) -> tuple[Tensor, Tensor, torch.Generator]:
        """Part of a step's batch, a function of the step alone.

        Returns: tokens (B, L) int64 of these rows, continuous ones drawn from their distributions; the class ids of
            the whole batch, int64; the step's own generator, in the same state for any rows.
        """
        ...


@dataclass(frozen=True)
class EncodedImages:
    """Batches of augmented images, encoded when they are needed, on the tokenizer's device."""

    tokenizer: LoadedTokenizer  # what encodes
    images: TrainingImages  # augmented

    @property
    def subject(self) -> Mapping[str, str]:
        return self.images.subject

    def batch(self, step: int, rows: Rows) -> tuple[Tensor, Tensor, torch.Generator]:
        """As `TokenBatches.batch`."""
        x, labels, generator = self.images.batch(step, rows)
        network, device = self.tokenizer.network, self.tokenizer.device
        with torch.no_grad(), tf32(False), torch.autocast(device.type, enabled=False):
            latents = network.encode(x.to(device))
            if not network.channels:
                return network.tokenize(latents), labels, generator
            noise = torch.randn(rows.of, network.layout.num_tokens, network.channels, generator=generator)
            return network.draw(latents, rows.take(noise).to(device)), labels, generator


def train_generator(
    images: ImageSet,
    out: Path,
    tokenizer: LoadedTokenizer,
    shape: Mapping[str, Any],
    recipe: Recipe,
    *,
    family: str,
    augment: Augment | None = None,
    held_out: ImageSet | None = None,
    run: Run | None = None,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
) -> TrainableModel:
    """Train a generator of the tokens of labelled images and write it to `out` (safetensors), replacing it.

    It runs on the tokenizer's device, and resumes as `train_tokenizer` does.

    Args:
        shape: of the network, in the family's own terms (`GeneratorFamily.new`).
        family: a name in `families.GENERATORS`.
        augment: None for random crops.
        held_out: images to validate on, if any.
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
    data, checkpoint, names = EncodedImages(tokenizer, batches), resume_file(out), images.class_names
    watched = watched_images(
        *(model, tokenizer, batches, None if held_out is None else labelled_as(held_out, names), recipe.batch_size),
        loss=lambda plain: loss_of(model, plain, recipe, validates=True),
        draw=lambda: draw_classes(model, tokenizer),
    )
    trained = fit(model, tokenizer, data, recipe, checkpoint, progress, watched=watched, run=run, say=say)
    save = partial(save_generator, model, out, class_names=names, tokenizer_sha256=tokenizer.sha256)
    conclude(trained, out, save, run)
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
    watched: Watched | None = None,
    run: Run | None = None,
    say: Notify = no_message,
) -> Trained | None:
    """Train a generator in place; resumes from `checkpoint`.

    Returns: as `loop.train`.
    Raises: UsageError for what the recipe asks and the model does not know; as `loop.train`.
    """
    prepare(model, recipe)
    network = model.network.requires_grad_(True)
    subject = {
        "network": str(model.config),
        **data.subject,
        "tokenizer": fingerprint(tokenizer.network),
        "beginning": fingerprint(network),
    }
    how: dict[str, Any] = {"subject": subject, "decays": model.decays, "watched": watched, "run": run, "say": say}
    return train(network, loss_of(model, data, recipe), recipe, checkpoint, progress, **how)


def loss_of(model: TrainableModel, data: TokenBatches, recipe: Recipe, *, validates: bool = False) -> LossOfRows:
    """The loss of rows of a step's batch.

    Args:
        validates: whether it is of the last step, without dropping classes and branches.
    """
    device, segments = next(model.network.parameters()).device, len(model.segment_ends)
    dropout = 0.0 if validates else recipe.class_dropout

    def loss_of_rows(step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        tokens_BL, labels, generator = data.batch(step, rows)
        dropped = torch.rand(rows.of, generator=generator) < dropout
        class_B = rows.take(torch.where(dropped, model.num_classes, labels))
        objective = recipe.objective(recipe.steps - 1 if validates else step, segments)
        objective = replace(objective, drop_path=0.0) if validates else objective
        draw = model.draw(rows.of, objective, generator).take(rows)
        seed_dropout(recipe, generator)
        loss = model.training_loss(tokens_BL.to(device), class_B.to(device), objective, draw).mean
        return loss, {"bits/token": loss.item() / math.log(2)}

    return loss_of_rows


def watched_images(
    model: NetworkModel,
    tokenizer: LoadedTokenizer,
    images: TrainingImages,
    held_out: ImageSet | None,
    batch_size: int,
    loss: Callable[[EncodedImages], LossOfRows],
    draw: Callable[[], np.ndarray] | None = None,
) -> Watched:
    """What there is to watch in a training of a generator on images.

    Args:
        held_out: to validate on; their labels are those of the training. loss: on these.
        draw: as for `Watched`.
    """
    tokens = tokenizer.layout.num_tokens
    if held_out is None:
        return Watched(images=len(images), tokens=tokens, draw=draw)
    plain = ValidationImages(held_out, images.size, images.augment, batch_size=batch_size, seed=images.seed)
    validation = Validation(
        loss=loss(EncodedImages(tokenizer, plain)),
        images=len(plain),
        batch_size=batch_size,
        subject=plain.subject["images"],
    )
    return Watched(images=len(images), tokens=tokens, validation=validation, draw=draw)


@torch.no_grad()
def draw_classes(model: TrainableModel, tokenizer: LoadedTokenizer) -> np.ndarray:
    """Pictures of the first classes, a column each, with the guidance that the model is meant for."""
    shown = min(model.num_classes, DRAWN)
    class_B = torch.arange(shown).repeat_interleave(DRAWN_OF_EACH).to(tokenizer.device)
    streams = [generator_of(0, number, device=tokenizer.device) for number in range(len(class_B))]
    # A new model around the weights: a model keeps tables that were computed from them.
    drawing = model.with_network(model.network)
    tokens_BL = drawing.sample(class_B, generators=streams, guidance=drawing.default_guidance)
    images = tokenizer.network.reconstruct(tokens_BL)
    return grid(images.unflatten(0, (shown, DRAWN_OF_EACH)).transpose(0, 1))
