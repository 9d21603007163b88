"""Condition contrastive alignment: a generator learns to tell an image's class from other classes.

Source: arXiv:2410.09347. Against a frozen copy of the model, g(x, y) = log p(x|y) - log p_reference(x|y), and
loss = -log sigmoid(beta g(x, y)) - lambda log sigmoid(-beta g(x, y')), where y' is another image's class. For a model
that is scored along random orders, log p is that along one of them, the same for both models and both classes.
Shapes: B images, L tokens.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.added_classes import base_of
from avarc_cli.data.labels import match
from avarc_cli.errors import UsageError
from avarc_cli.layers import low_rank
from avarc_cli.layers.linears import plain_weights
from avarc_cli.layers.low_rank import LowRank
from avarc_cli.layers.rows import Rows
from avarc_cli.loaded import LoadedModel, LoadedTokenizer
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.settings import check_contrast
from avarc_cli.tokens.source import Source, class_names, relabelled
from avarc_cli.train.generator import draw_classes, watched_batches
from avarc_cli.train.images import Augment
from avarc_cli.train.loop import Trained, conclude, fingerprint, train
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.resume import resume_file
from avarc_cli.train.run import Run
from avarc_cli.train.save import check_place, save_generator, save_lora
from avarc_cli.train.token_batches import TokenBatches, training_batches
from avarc_cli.train.updates import LossOfRows
from avarc_cli.train.watch import Watched
from avarc_cli.trainable import TrainableModel


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The loss. Raises: UsageError for numbers out of range."""

    beta: float = 0.02  # how fast a difference of log-likelihoods (nats per image) saturates
    weight: float = 1.0  # lambda, of the pairs with another image's class
    class_dropout: float = 0.1  # fraction of images that stay unconditional, and count as positives

    def __post_init__(self) -> None:
        check_contrast(self.beta, self.weight, self.class_dropout)

    def loss(self, gain_2B: Tensor, negative_B: Tensor) -> Tensor:
        """The mean loss per image.

        Args:
            gain_2B: g in nats of the images under their own classes, then of the same images under others'.
            negative_B: which of the second half are negatives; the others count as positives with weight 1.
        """
        own_B, other_B = (self.beta * gain_2B).chunk(2)
        second_B = torch.where(negative_B, -self.weight * F.logsigmoid(-other_B), -F.logsigmoid(other_B))
        return (second_B - F.logsigmoid(own_B)).mean() / max(self.weight, 1.0)


def align(
    source: Source,
    out: Path,
    model: LoadedModel,
    recipe: Recipe,
    *,
    contrast: Contrast | None = None,
    rank: int = 0,
    augment: Augment | None = None,
    held_out: Source | None = None,
    run: Run | None = None,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
) -> None:
    """Fine-tune a generator on images of its own classes and write it to `out`.

    Resumes as `train_tokenizer` does.

    Args:
        source: images, or a cache of their tokens.
        rank: 0 trains every weight and writes a safetensors file; otherwise the rank of a LoRA adapter, which is
            written to the folder `out` as PEFT saves them.
        augment: of images; None for random crops.
        held_out: images to validate on, if any, or a cache.
        say: as for `train_tokenizer`.
    Raises: UsageError for a model of captions, and for images without a class of the model; otherwise as
        `train_tokenizer`.
    """
    if model.likelihood.text is not None:
        raise UsageError(
            f"CCA does not fine-tune {model.name}, a model of captions",
            "it contrasts an image's class with another one, and of two captions both may be right",
            "fine-tune a model of classes",
        )
    check_place(out, folder=rank > 0)
    tokenizer, left_out = model.tokenizer, (run or Run()).left_out
    data = training_batches(_labelled(source, model), tokenizer, augment, seed=recipe.seed, left_out=left_out)
    reference = base_of(model.likelihood)
    student = student_of(reference, rank, torch.Generator().manual_seed(recipe.seed))
    contrast = contrast or Contrast()
    measured = replace(contrast, class_dropout=0.0)
    watched = watched_batches(
        *(data, tokenizer, None if held_out is None else _labelled(held_out, model), augment, recipe, run),
        loss=lambda plain: loss_of(reference, student, plain, measured),
        draw=lambda: draw_classes(student, tokenizer),
    )
    how: dict[str, Any] = {"watched": watched, "run": run, "say": say}
    trained = fit(reference, student, tokenizer, data, recipe, contrast, resume_file(out), progress, **how)

    def save() -> None:
        if rank:
            save_lora(low_rank.attached(student.network), out, base_sha256=model.sha256)
        else:
            save_generator(student, out, class_names=model.classes.ids, tokenizer_sha256=tokenizer.sha256)

    conclude(trained, out, save, run)


def _labelled(source: Source, model: LoadedModel) -> Source:
    """The same images with the model's class ids for labels. Raises: UsageError."""
    names = class_names(source)
    class_of = match(names, model.classes)
    if not names or (source.labels < 0).any() or (class_of < 0).any():
        unknown = [name for name, i in zip(names, class_of, strict=True) if i < 0]
        why = f"{model.name} has none called {', '.join(unknown[:4])}" if unknown else "every image needs one"
        raise UsageError("images without a class of the model", why, "use one sub-folder a class, named as the model's")
    return relabelled(source, class_of[source.labels], model.classes.ids)


def fit(
    reference: TrainableModel,
    student: TrainableModel,
    tokenizer: LoadedTokenizer,
    data: TokenBatches,
    recipe: Recipe,
    contrast: Contrast,
    checkpoint: Path,
    progress: MetricsProgress,
    *,
    watched: Watched | None = None,
    run: Run | None = None,
    say: Notify = no_message,
) -> Trained | None:
    """Train the trainable parameters of `student`, a model that begins equal to `reference`, in place.

    Returns, Raises: as `loop.train`.
    """
    network = reference.network.requires_grad_(False)
    weights = sum(p.numel() for p in student.network.parameters() if p.requires_grad)
    subject = {
        "loss": f"CCA, {contrast}{', in random orders' if reference.default_orders else ''}",
        "network": f"{weights} weights of {reference.config}",
        **data.subject,
        "tokenizer": fingerprint(tokenizer.network),
        "beginning": fingerprint(network),
    }
    loss = loss_of(reference, student, data, contrast)
    how: dict[str, Any] = {"subject": subject, "watched": watched, "run": run, "say": say}
    return train(student.network, loss, recipe, checkpoint, progress, **how)


def loss_of(reference: TrainableModel, student: TrainableModel, data: TokenBatches, contrast: Contrast) -> LossOfRows:
    """The loss of rows of a step's batch."""
    device = next(reference.network.parameters()).device

    def loss_of_rows(step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        tokens_BL, labels, generator = data.batch(step, rows)
        tokens_2BL = tokens_BL.to(device).repeat(2, 1)
        label_B, other_B = rows.take(labels), rows.take(labels.roll(1))
        dropped_B = rows.take(torch.rand(rows.of, generator=generator) < contrast.class_dropout)
        class_2B = torch.cat([label_B, other_B]).masked_fill(dropped_B.repeat(2), reference.num_classes).to(device)
        orders = _random_orders(reference, rows.of, generator)
        order_2BL = None if orders is None else rows.take(orders).to(device).repeat(2, 1)
        with torch.no_grad():
            before_2B = reference.token_log_prob(tokens_2BL, class_2B, order_2BL).sum(1)
        gain_2B = student.token_log_prob(tokens_2BL, class_2B, order_2BL).sum(1) - before_2B
        negative_B = (~dropped_B & (other_B != label_B)).to(device)
        loss = contrast.loss(gain_2B, negative_B)
        own, other = gain_2B.detach().chunk(2)
        return loss, {"loss": loss.item(), "own": own.mean().item(), "others": other.mean().item()}

    return loss_of_rows


def _random_orders(model: TrainableModel, count: int, generator: torch.Generator) -> Tensor | None:
    """Orders to score a batch along, (count, L) int64; None for a model that is scored in the order of positions."""
    if not model.default_orders:
        return None
    return torch.rand(count, model.segment_ends[-1], generator=generator).argsort(dim=1)


def student_of(model: TrainableModel, rank: int, generator: torch.Generator) -> TrainableModel:
    """A copy to train, equal to `model` at first: all its weights or, with a rank, LoRA of attention and MLP."""
    with plain_weights(model.network):
        network = copy.deepcopy(model.network)
    if not rank:
        return model.with_network(network.requires_grad_(True))
    network.requires_grad_(False)
    device = next(network.parameters()).device
    targets = model.low_rank_targets("lora")
    low_rank.attach(network, {name: LowRank.new(targets[name], rank, generator).to(device) for name in targets})
    return model.with_network(network)
