"""Training of a tokenizer on a set of images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from avarc_cli import families
from avarc_cli.data.datasets import ImageSet
from avarc_cli.family import CaptionedLoss, DrawnLoss, PixelLoss, TokenizerLoss
from avarc_cli.layers.dropout import set_dropout
from avarc_cli.layers.precision import tf32
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.vq_loss import Measures, ReconstructionLoss
from avarc_cli.layers.weight_decay import decays_unless_named
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.settings import SMALL
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.train.beginning import tokenizer_of
from avarc_cli.train.class_captions import ClassCaptions
from avarc_cli.train.generator import seed_dropout
from avarc_cli.train.images import Augment, TrainingImages, ValidationImages, first_readable
from avarc_cli.train.loop import conclude, fingerprint, train
from avarc_cli.train.published_loss import Terms, check, describe, left_out, make, used
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.resume import resume_file
from avarc_cli.train.run import Run
from avarc_cli.train.save import check_place, save_tokenizer
from avarc_cli.train.validation import Validation, labelled_as
from avarc_cli.train.watch import Watched, grid

DRAWN = 8  # images of a picture of reconstructions
FROZEN_NETWORKS = "frozen_networks"  # in the metadata of a file: their sha256 by name, JSON
Before: TypeAlias = Callable[[Tensor, Rows, torch.Generator], None]
"""Called before the loss of rows of a batch, with the labels of the whole batch and the step's own generator."""


def train_tokenizer(
    images: ImageSet,
    out: Path,
    shape: Mapping[str, Any],
    recipe: Recipe,
    *,
    image_size: int | None,
    family: str,
    start: Path | None = None,
    augment: Augment | None = None,
    terms: Terms | None = None,
    measures: Measures | None = None,
    captions: ClassCaptions | None = None,
    held_out: ImageSet | None = None,
    device: torch.device,
    run: Run | None = None,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
    note: Notify = no_message,
) -> TokenizerNetwork:
    """Train a tokenizer that reconstructs `images` and write it to `out` (safetensors), replacing it.

    A stopped training resumes from OUT.ckpt when this is called again with the same arguments. On a CPU the same seed
    and number of threads give the same weights, bit for bit.

    Args:
        shape: of the network, in the family's own terms (`TokenizerFamily.new`). Of no use with `start`.
        image_size: side of the images, pixels; None for what `start` says.
        family: a name in `families.TOKENIZERS`.
        start: weights to begin with.
        augment: None for random crops.
        terms: of the published loss; None trains by absolute and squared errors of pixels alone. Frozen networks that
            they do not name are those that were downloaded.
        measures: against codes that fall out of use.
        captions: of the images' classes, for a decoder that reads them.
        held_out: images to validate on, if any.
        say: called with a message when OUT.ckpt is too old to be verified.
        note: called with messages: which frozen networks are used, which terms of the published loss are left out, and
            in the end how codes are used.
    Raises: UsageError for a shape that does not fit; AvarcError for an unreadable image, a loss that is not finite, or
        an output that cannot be written; CheckpointError for an OUT.ckpt of another training; Interrupted on Ctrl-C.
    """
    check_place(out)
    known = families.TOKENIZERS.get(family)
    torch.manual_seed(recipe.seed)
    made_of = {}
    if start is None:
        network = known.new(image_size=image_size, **shape)
    else:
        network = tokenizer_of(start, known, image_size)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it
        made_of = {"beginning": fingerprint(network)}
    network.to(device)  # only now: the CPU's generator makes the same first weights for every device
    of_family = known.training_loss(network)
    loss, of_loss, stated = published(of_family, terms, recipe, network, note)
    made_of |= of_loss
    codes = of_family if isinstance(of_family, ReconstructionLoss) else None
    if (initialization := shape.get("initialization", SMALL)) != SMALL:
        made_of |= {"initialization": initialization}
    if codes and measures and measures != Measures():
        codes.use(measures)
        made_of |= {"measures": str(measures)}
    if captions is not None:
        made_of |= {"captions": captions.digest}
        held_out = None if held_out is None else labelled_as(held_out, images.class_names)
    fit(
        network,
        loss,
        images,
        out,
        recipe,
        family=family,
        augment=augment,
        made_of=made_of,
        stated=stated,
        held_out=held_out,
        before=_before(of_family, captions, device),
        captions=captions,
        run=run,
        progress=progress,
        say=say,
    )
    if codes:
        note(codes.usage())
    return network


def _before(loss: TokenizerLoss, captions: ClassCaptions | None, device: torch.device) -> Before:
    """What a family's own loss needs before it is called."""

    def before(labels: Tensor, rows: Rows, generator: torch.Generator) -> None:
        if captions is not None and isinstance(loss, CaptionedLoss):
            loss.read(captions.guidance(labels, rows, generator).to(device))
        if isinstance(loss, DrawnLoss):
            loss.draw(rows, generator)

    return before


def published(
    loss: TokenizerLoss, terms: Terms | None, recipe: Recipe, network: TokenizerNetwork, note: Notify
) -> tuple[TokenizerLoss, dict[str, str], dict[str, str]]:
    """The loss with terms of the published one; what a training depends on through them; what its file is to say.

    Raises: as `published_loss.check` and `make`.
    """
    if not isinstance(loss, PixelLoss):
        return loss, {}, {}
    size = network.image_size
    named = terms or Terms()
    terms = named if terms is None else named.with_downloaded(loss.published, size)
    check(loss.published, terms, size)
    for message in (used(terms, named), left_out(loss.published, terms, size)):
        if message:
            note(message)
    if not terms.are_given():
        return loss, {}, {}
    step, frozen = make(loss, terms, recipe, size, next(network.parameters()).device)
    return step, {"loss": describe(step)}, {FROZEN_NETWORKS: json.dumps(frozen)} if frozen else {}


def fit(
    network: TokenizerNetwork,
    loss: TokenizerLoss,
    images: ImageSet,
    out: Path,
    recipe: Recipe,
    *,
    family: str,
    augment: Augment | None,
    made_of: Mapping[str, str] | None = None,
    stated: Mapping[str, str] | None = None,
    held_out: ImageSet | None,
    draws: bool = True,
    before: Before = lambda labels, rows, generator: None,
    captions: ClassCaptions | None = None,
    run: Run | None,
    progress: MetricsProgress,
    say: Notify,
) -> None:
    """Train a tokenizer in place by this loss and write it to `out`; as `train_tokenizer`.

    Args:
        draws: whether the network makes images already. before: as `Before`. captions: for the pictures.
        made_of: what the training depends on besides shape and images. stated: what else the file is to say.
    """
    augment = augment or Augment()
    device = next(network.parameters()).device
    set_dropout(network, recipe.dropout)
    batches = TrainingImages(
        images,
        network.image_size,
        augment,
        seed=recipe.seed,
        left_out=(run or Run()).left_out,
        within_class=captions is not None,
    )

    def loss_of_rows(step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        x, labels, generator = batches.batch(step, rows)
        before(labels, rows, generator)
        seed_dropout(network, recipe, rows, generator)
        return loss(x.to(device).contiguous(memory_format=torch.channels_last), step, recipe.steps, generator)

    subject = {"network": str(network.config), **batches.subject, **(made_of or {})}
    drawing = draws and run is not None and run.pictures_every > 0
    watched = _watched(network, loss, batches, held_out, recipe, draws=drawing, before=before, captions=captions)
    decays = partial(decays_unless_named, without=families.TOKENIZERS.get(family).undecayed)
    trained = train(
        network,
        loss_of_rows,
        recipe,
        resume_file(out),
        progress,
        decays=decays,
        subject=subject,
        kept=loss,
        watched=watched,
        run=run,
        say=say,
    )
    save = partial(save_tokenizer, network, out, family=family, preprocess=augment.preprocess, stated=stated)
    conclude(trained, out, save, run)


def _watched(
    network: TokenizerNetwork,
    loss: TokenizerLoss,
    batches: TrainingImages,
    held_out: ImageSet | None,
    recipe: Recipe,
    *,
    draws: bool,
    before: Before,
    captions: ClassCaptions | None,
) -> Watched:
    device = next(network.parameters()).device

    def unvaried(images: ImageSet, batch_size: int) -> ValidationImages:
        return ValidationImages(
            images,
            batches.size,
            batches.augment,
            batch_size=batch_size,
            seed=recipe.seed,
            left_out=batches.left_out,
        )

    watched = Watched(images=len(batches), tokens=network.layout.num_tokens, listing=batches.listing)
    if draws:  # the first process draws, but all of them open the images together
        shown = unvaried(first_readable(batches.images if held_out is None else held_out, DRAWN), DRAWN)

        def draw() -> np.ndarray:
            rows = Rows.whole(len(shown))
            x, labels, generator = shown.batch(0, rows)
            guided = network
            if captions is not None:
                guided = network.with_guidance(captions.guidance(labels, rows, generator).to(device))
            return reconstructions(guided, x.to(device))

        watched = replace(watched, draw=draw)
    if held_out is None:
        return watched
    plain = unvaried(held_out, recipe.batch_size)

    def loss_of_rows(number: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        x, labels, generator = plain.batch(number, rows)
        before(labels, rows, generator)
        return loss(x.to(device), 0, recipe.steps, generator)  # a step in which no loss does more than measure

    validation = Validation(
        loss=loss_of_rows, images=len(plain), batch_size=recipe.batch_size, subject=plain.subject["images"], kept=loss
    )
    return replace(watched, validation=validation, listing=lambda: batches.listing().with_others(plain.listing()))


@torch.no_grad()
def reconstructions(network: TokenizerNetwork, images: Tensor) -> np.ndarray:
    """A picture of images (B, 3, H, H) in columns: image, reconstruction, and how they differ (gray: not at all)."""
    with tf32(False):
        made = network.reconstruct(network.tokenize(network.encode(images)))
    return grid(torch.stack([images, made, (made - images) / 2]))
