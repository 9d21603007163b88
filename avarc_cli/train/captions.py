"""Training of a generator on captions: each image has the name of a class, each class one or more captions.

Shapes: N images, B of a batch, L tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avarc_cli import families
from avarc_cli.data.image_scores import ImageScores
from avarc_cli.layers.rows import Rows
from avarc_cli.loaded import LoadedTokenizer, check_kind
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.text.features import TextInput
from avarc_cli.tokens.source import Source, class_names, image_names, title
from avarc_cli.train.class_captions import ClassCaptions
from avarc_cli.train.generator import prepare, seed_dropout, shown, watched_batches
from avarc_cli.train.images import Augment
from avarc_cli.train.loop import conclude, fingerprint, train
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.resume import resume_file
from avarc_cli.train.run import Run
from avarc_cli.train.save import check_place, save_generator
from avarc_cli.train.start import Start
from avarc_cli.train.token_batches import CachedTokens, EncodedImages, training_batches
from avarc_cli.train.updates import LossOfRows
from avarc_cli.train.validation import labelled_as
from avarc_cli.trainable import CaptionTrainableModel

MEASURED = 1024  # images whose continuous tokens are measured before a training


def train_on_captions(
    source: Source,
    out: Path,
    tokenizer: LoadedTokenizer,
    shape: Mapping[str, Any],
    recipe: Recipe,
    *,
    family: str,
    captions: ClassCaptions,
    text: TextInput,
    start: Start | None = None,
    scores: ImageScores | None = None,
    augment: Augment | None = None,
    held_out: Source | None = None,
    run: Run | None = None,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
    note: Notify = no_message,
) -> CaptionTrainableModel:
    """Train a generator of the tokens of images after their captions; write it to `out` (safetensors), replacing it.

    At every step an image has one of the captions of its class, drawn at random. The text encoder is not trained. It
    runs on the tokenizer's device, and resumes as `train_tokenizer` does.

    Args:
        source: images, or a cache of their tokens.
        shape: of the network, in the family's own terms; not used where there is a `start`.
        captions: of the images' classes.
        text: what the model is to read.
        start: weights to begin with.
        scores: of the images, for a model that is given them; its default is then their mean.
        note: called with what of `start` is not used.
        The others as for `train_generator`.
    Raises: UsageError for images without a score, a `start` of another family, and a
        tokenizer of the wrong kind of tokens; otherwise as `train_generator`.
    """
    check_place(out)
    maker = families.GENERATORS.get(family)
    check_kind(f"a {maker.title}", maker.continuous, tokenizer)
    shape = dict(shape) if start is None else start.shape(maker, tokenizer)
    given = None if scores is None else scores.of(image_names(source), title(source))
    if given is not None:
        shape |= {"aesthetic_score": round(float(given.mean()), 2)}
        shape.pop("score_width", None)  # that of a start, whose model may read no scores
    left_out = (run or Run()).left_out
    data = training_batches(source, tokenizer, augment, seed=recipe.seed, left_out=left_out)
    if maker.continuous and start is None:
        shape |= {"scale_factor": scale_of(data, recipe.batch_size)}
    torch.manual_seed(recipe.seed)
    model = maker.new_of_captions(tokenizer.network, text, **shape)
    if start is not None:
        start.give(model.network, maker, note)
    network = model.network.requires_grad_(True)
    prepare(model, recipe)
    subject = {
        "network": str(model.config),
        **data.subject,
        "captions": captions.digest,
        "tokenizer": fingerprint(tokenizer.network),
        "beginning": fingerprint(network),
    } | ({} if given is None else {"aesthetic scores": _digest(given)})
    theirs = None if scores is None or held_out is None else scores.of(image_names(held_out), title(held_out))
    held_out = None if held_out is None else labelled_as(held_out, class_names(source))
    watched = watched_batches(
        *(data, tokenizer, held_out, augment, recipe, run),
        loss=lambda plain: loss_of(model, plain, captions, recipe, theirs, validates=True),
    )
    how: dict[str, Any] = {"subject": subject, "decays": model.decays, "watched": watched, "run": run, "say": say}
    loss = loss_of(model, data, captions, recipe, given)
    trained = train(network, loss, recipe, resume_file(out), progress, **how)
    save = partial(save_generator, model, out, class_names=None, tokenizer_sha256=tokenizer.sha256)
    conclude(trained, out, save, run)
    return model


def loss_of(
    model: CaptionTrainableModel,
    data: EncodedImages | CachedTokens,
    captions: ClassCaptions,
    recipe: Recipe,
    scores: np.ndarray | None,
    *,
    validates: bool = False,
) -> LossOfRows:
    """As `generator.loss_of`, of a model that reads captions.

    Args:
        scores: of the images, for a model that is given them.
    """
    device, segments = next(model.network.parameters()).device, len(model.segment_ends)
    dropout = 0.0 if validates else recipe.class_dropout
    score_N = None if scores is None else torch.from_numpy(scores)

    def loss_of_rows(step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        tokens_BL, labels, generator = data.batch(step, rows)
        chosen = captions.draw(labels, rows, generator)
        dropped_B = rows.take(torch.rand(rows.of, generator=generator) < dropout)
        objective = recipe.objective(recipe.steps - 1 if validates else step, segments)
        draw = model.draw(rows.of, objective, generator).take(rows)
        seed_dropout(model.network, recipe, rows, generator)
        score_B = None if score_N is None else rows.take(score_N[data.rows(step, rows.of)])
        return shown(model.caption_loss(tokens_BL.to(device), chosen, dropped_B, objective, draw, score_B=score_B))

    return loss_of_rows


def scale_of(data: EncodedImages | CachedTokens, batch_size: int) -> float:
    """What continuous tokens are multiplied by to have a standard deviation of 1, in four digits.

    That of the first batches, of `MEASURED` images or as many as there are.
    """
    count = math.ceil(min(MEASURED, len(data)) / batch_size)
    parts = [data.batch(step, Rows.whole(batch_size))[0].double().cpu() for step in range(count)]
    return float(f"{1 / torch.cat(parts).std().item():.4g}")


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]
