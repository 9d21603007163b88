"""Training of a class-conditional generator: mean cross-entropy over positions, the class dropped now and then.

Shapes: B images, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avarc_cli import families
from avarc_cli.layers.dropout import set_dropout, set_rows
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.sampling import generator_of
from avarc_cli.likelihood import NetworkModel
from avarc_cli.loaded import LoadedTokenizer, check_kind
from avarc_cli.objective import StepLoss
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.tokens.source import Source, class_names
from avarc_cli.train.images import Augment
from avarc_cli.train.loop import Trained, conclude, fingerprint, train
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.resume import resume_file
from avarc_cli.train.run import Run
from avarc_cli.train.save import check_place, save_generator
from avarc_cli.train.token_batches import (
    CachedTokens,
    EncodedImages,
    TokenBatches,
    check_classes,
    training_batches,
    validation_batches,
)
from avarc_cli.train.updates import LossOfRows
from avarc_cli.train.validation import Validation, labelled_as
from avarc_cli.train.watch import Watched, grid
from avarc_cli.trainable import TrainableModel

DRAWN = 8  # classes of a picture of samples
DRAWN_OF_EACH = 2


def train_generator(
    source: Source,
    out: Path,
    tokenizer: LoadedTokenizer,
    shape: Mapping[str, Any],
    recipe: Recipe,
    *,
    family: str,
    augment: Augment | None = None,
    held_out: Source | None = None,
    run: Run | None = None,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
) -> TrainableModel:
    """Train a generator of the tokens of labelled images and write it to `out` (safetensors), replacing it.

    It runs on the tokenizer's device, and resumes as `train_tokenizer` does.

    Args:
        source: images, or a cache of their tokens.
        shape: of the network, in the family's own terms (`GeneratorFamily.new`).
        family: a name in `families.GENERATORS`.
        augment: of images; None for random crops.
        held_out: images to validate on, if any, or a cache.
        say: as for `train_tokenizer`.
    Raises: UsageError for images without a class; CacheError for a cache of another tokenizer; otherwise as
        `train_tokenizer`.
    """
    check_place(out)
    check_classes(source)
    names, left_out = class_names(source), (run or Run()).left_out
    data = training_batches(source, tokenizer, augment, seed=recipe.seed, left_out=left_out)
    model = new_generator(family, tokenizer, len(names), shape, seed=recipe.seed)
    watched = watched_batches(
        *(data, tokenizer, None if held_out is None else labelled_as(held_out, names), augment, recipe, run),
        loss=lambda plain: loss_of(model, plain, recipe, validates=True),
        draw=lambda: draw_classes(model, tokenizer),
    )
    trained = fit(model, tokenizer, data, recipe, resume_file(out), progress, watched=watched, run=run, say=say)
    save = partial(save_generator, model, out, class_names=names, tokenizer_sha256=tokenizer.sha256)
    conclude(trained, out, save, run)
    return model


def prepare(model: NetworkModel, recipe: Recipe) -> None:
    """Give the network the recipe's dropout. Raises: UsageError for what the recipe asks and the model has not."""
    objective = recipe.objective(0, len(model.segment_ends))
    objective.check(model.trained_with, f"a model of the family {model.family}")
    set_dropout(model.network, recipe.dropout)


def seed_dropout(network: nn.Module, recipe: Recipe, rows: Rows, generator: torch.Generator) -> None:
    """Make the dropout of a step a function of the step's own generator: torch draws it from its global ones."""
    if recipe.dropout:
        set_rows(network, rows)
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
        seed_dropout(model.network, recipe, rows, generator)
        return shown(model.training_loss(tokens_BL.to(device), class_B.to(device), objective, draw))

    return loss_of_rows


def shown(loss: StepLoss) -> tuple[Tensor, dict[str, float]]:
    """A step's loss with gradients, and what to show of it."""
    if loss.shown is not None:
        return loss.mean, dict(loss.shown)
    return loss.mean, {"bits/token": loss.mean.item() / math.log(2), "accuracy": loss.accuracy.item()}


def watched_batches(
    data: EncodedImages | CachedTokens,
    tokenizer: LoadedTokenizer,
    held_out: Source | None,
    augment: Augment | None,
    recipe: Recipe,
    run: Run | None,
    loss: Callable[[EncodedImages | CachedTokens], LossOfRows],
    draw: Callable[[], np.ndarray] | None = None,
) -> Watched:
    """What there is to watch in a training of a generator.

    Args:
        data: what is trained on.
        held_out: to validate on; their labels are those of the training. loss: on these.
        draw: as for `Watched`.
    """
    watched = Watched(images=len(data), tokens=tokenizer.layout.num_tokens, listing=data.listing, draw=draw)
    if held_out is None:
        return watched
    size, left_out = recipe.batch_size, (run or Run()).left_out
    how: dict[str, Any] = {"batch_size": size, "seed": recipe.seed, "left_out": left_out}
    plain = validation_batches(held_out, tokenizer, augment, **how)
    measured = Validation(loss=loss(plain), images=len(plain), batch_size=size, subject=plain.subject["images"])
    return replace(watched, validation=measured, listing=lambda: data.listing().with_others(plain.listing()))


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
