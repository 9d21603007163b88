"""Training of a generator on captions: each image has the name of a class, each class one or more captions.

Shapes: B images, L tokens, R captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avarc_cli import families
from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.labels import UNKNOWN, match
from avarc_cli.errors import UsageError, shorten_list
from avarc_cli.layers.rows import Rows
from avarc_cli.loaded import LoadedTokenizer
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.text.captions import Captions
from avarc_cli.text.encoders import take
from avarc_cli.text.features import CaptionFeatures, TextInput
from avarc_cli.train.generator import EncodedImages, prepare, seed_dropout, shown, watched_images
from avarc_cli.train.images import Augment, TrainingImages
from avarc_cli.train.loop import conclude, fingerprint, train
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.resume import resume_file
from avarc_cli.train.run import Run
from avarc_cli.train.save import check_place, save_generator
from avarc_cli.train.updates import LossOfRows
from avarc_cli.train.validation import labelled_as
from avarc_cli.trainable import CaptionTrainableModel


def train_on_captions(
    images: ImageSet,
    out: Path,
    tokenizer: LoadedTokenizer,
    shape: Mapping[str, Any],
    recipe: Recipe,
    *,
    family: str,
    captions: Captions,
    features: CaptionFeatures,
    text: TextInput,
    augment: Augment | None = None,
    held_out: ImageSet | None = None,
    run: Run | None = None,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
) -> CaptionTrainableModel:
    """Train a generator of the tokens of images after their captions; write it to `out` (safetensors), replacing it.

    At every step an image has one of the captions of its class, drawn at random. The text encoder is not trained. It
    runs on the tokenizer's device, and resumes as `train_tokenizer` does.

    Args:
        captions: whose names are those of the images' classes.
        features: of these captions.
        text: what the model is to read.
        The others as for `train_generator`.
    Raises: UsageError for classes without a caption; otherwise as `train_generator`.
    """
    check_place(out)
    captions_of = captions_of_classes(images, captions)
    torch.manual_seed(recipe.seed)
    model = families.GENERATORS.get(family).new_of_captions(tokenizer.network, text, **shape)
    batches = TrainingImages(images, tokenizer.image_size, augment or Augment(), seed=recipe.seed)
    data = EncodedImages(tokenizer, batches)
    network = model.network.requires_grad_(True)
    device, segments = next(network.parameters()).device, len(model.segment_ends)
    prepare(model, recipe)

    def loss_of(data: EncodedImages, *, validates: bool = False) -> LossOfRows:
        dropout = 0.0 if validates else recipe.class_dropout

        def loss_of_rows(step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
            tokens_BL, labels, generator = data.batch(step, rows)
            drawn = torch.rand(rows.of, generator=generator)
            pairs = zip(rows.take(labels).tolist(), rows.take(drawn), strict=True)
            chosen = [captions_of[label][int(u * len(captions_of[label]))] for label, u in pairs]
            dropped_B = rows.take(torch.rand(rows.of, generator=generator) < dropout)
            objective = recipe.objective(recipe.steps - 1 if validates else step, segments)
            draw = model.draw(rows.of, objective, generator).take(rows)
            seed_dropout(network, recipe, rows, generator)
            return shown(model.caption_loss(tokens_BL.to(device), take(features, chosen), dropped_B, objective, draw))

        return loss_of_rows

    subject = {
        "network": str(model.config),
        **data.subject,
        "captions": captions.digest,
        "tokenizer": fingerprint(tokenizer.network),
        "beginning": fingerprint(network),
    }
    held_out = None if held_out is None else labelled_as(held_out, images.class_names)
    watched = watched_images(
        *(model, tokenizer, batches, held_out, recipe.batch_size), loss=lambda plain: loss_of(plain, validates=True)
    )
    how: dict[str, Any] = {"subject": subject, "decays": model.decays, "watched": watched, "run": run, "say": say}
    trained = train(network, loss_of(data), recipe, resume_file(out), progress, **how)
    save = partial(save_generator, model, out, class_names=None, tokenizer_sha256=tokenizer.sha256)
    conclude(trained, out, save, run)
    return model


def captions_of_classes(images: ImageSet, captions: Captions) -> list[list[int]]:
    """The rows of each class's captions.

    Raises: UsageError for images without a class, or classes without a caption.
    """
    if not images.class_names or (images.labels < 0).any():
        raise UsageError(
            "images without a class", "captions are found by the class of an image", "use class sub-folders"
        )
    found = match(images.class_names, captions.label_space)
    if missing := [name for name, index in zip(images.class_names, found, strict=True) if index == UNKNOWN]:
        raise UsageError(
            f"classes without a caption: {shorten_list(missing)}",
            f"{captions.source} has captions for {shorten_list(captions.ids)}",
            "write a caption for each class, under its name",
        )
    return [[row for row, owner in enumerate(captions.candidate) if owner == index] for index in found.tolist()]
