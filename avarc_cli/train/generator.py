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
from avarc_cli.layers.precision import tf32
from avarc_cli.layers.rows import Rows
from avarc_cli.likelihood import TrainableModel
from avarc_cli.loaded import LoadedTokenizer, check_kind
from avarc_cli.outputs import WEIGHTS, check_output
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.settings import check_class_dropout
from avarc_cli.train.images import Augment, TrainingImages
from avarc_cli.train.loop import Recipe, fingerprint, train
from avarc_cli.train.resume import resume_file
from avarc_cli.train.save import save_generator

CLASS_DROPOUT = 0.1  # arXiv:2404.02905, section 4


class TokenBatches(Protocol):
    """What a generator is trained on."""

    @property
    def subject(self) -> Mapping[str, str]:
        """What identifies the data, by name: a training of other data does not go on where this one stopped."""
        ...

    def batch(self, step: int, rows: Rows) -> tuple[Tensor, Tensor, torch.Generator]:
        """Part of a step's batch, a function of the step alone.

        Returns: tokens (B, L) int64 of these rows; the class ids of the whole batch, int64; the step's own generator,
            in the same state for any rows.
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
            tokens_BL = network.tokenize(network.encode(x.to(device)))
        return tokens_BL, labels, generator


def train_generator(
    images: ImageSet,
    out: Path,
    tokenizer: LoadedTokenizer,
    shape: Mapping[str, Any],
    recipe: Recipe,
    *,
    family: str,
    augment: Augment | None = None,
    class_dropout: float = CLASS_DROPOUT,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
) -> TrainableModel:
    """Train a generator of the tokens of labelled images and write it to `out` (safetensors), replacing it.

    It runs on the tokenizer's device, and resumes as `train_tokenizer` does.

    Args:
        shape: of the network, in the family's own terms (`GeneratorFamily.new`).
        family: a name in `families.GENERATORS`.
        augment: None for random crops.
        class_dropout: fraction of images trained on as unconditional, in [0, 1).
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
    fit(model, tokenizer, data, recipe, checkpoint, progress, class_dropout=class_dropout, say=say)
    save_generator(model, out, class_names=images.class_names, tokenizer_sha256=tokenizer.sha256)
    checkpoint.unlink(missing_ok=True)
    return model


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
    class_dropout: float = CLASS_DROPOUT,
    say: Notify = no_message,
) -> None:
    """Train a generator in place; resumes from `checkpoint`. Raises: UsageError; as `loop.train`."""
    check_class_dropout(class_dropout)
    network = model.network.requires_grad_(True)
    device = next(network.parameters()).device

    def loss_of_rows(step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        tokens_BL, labels, generator = data.batch(step, rows)
        dropped = torch.rand(rows.of, generator=generator) < class_dropout
        class_B = rows.take(torch.where(dropped, model.num_classes, labels))
        done = step / recipe.steps
        loss = model.training_loss(tokens_BL.to(device), class_B.to(device), done, generator, rows)
        return loss, {"bits/token": loss.item() / math.log(2)}

    subject = {
        "network": str(model.config),
        **data.subject,
        "tokenizer": fingerprint(tokenizer.network),
        "beginning": fingerprint(network),
        "class dropout": str(class_dropout),
    }
    train(network, loss_of_rows, recipe, checkpoint, progress, subject=subject, say=say)
