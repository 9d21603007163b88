"""Training of a tokenizer on a set of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avarc_cli import families
from avarc_cli.data.datasets import ImageSet
from avarc_cli.family import PixelLoss, TokenizerLoss
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.vq_loss import Measures, ReconstructionLoss
from avarc_cli.likelihood import TokenizerNetwork
from avarc_cli.outputs import WEIGHTS, check_output
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.train.images import Augment, TrainingImages
from avarc_cli.train.loop import Recipe, train
from avarc_cli.train.published_loss import Terms, check, describe, left_out, make
from avarc_cli.train.resume import resume_file
from avarc_cli.train.save import save_tokenizer


def train_tokenizer(
    images: ImageSet,
    out: Path,
    shape: Mapping[str, Any],
    recipe: Recipe,
    *,
    image_size: int,
    family: str,
    augment: Augment | None = None,
    terms: Terms | None = None,
    measures: Measures | None = None,
    device: torch.device,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
    note: Notify = no_message,
) -> TokenizerNetwork:
    """Train a tokenizer that reconstructs `images` and write it to `out` (safetensors), replacing it.

    A stopped training resumes from OUT.ckpt when this is called again with the same arguments. On a CPU the same seed
    and number of threads give the same weights, bit for bit.

    Args:
        shape: of the network, in the family's own terms (`TokenizerFamily.new`).
        image_size: side of the images, pixels.
        family: a name in `families.TOKENIZERS`.
        augment: None for random crops.
        terms: of the published loss; None trains by absolute and squared errors of pixels alone.
        measures: against codes that fall out of use.
        say: called with a message when OUT.ckpt is too old to be verified.
        note: called with messages: which terms of the published loss are left out, and in the end how codes are used.
    Raises: UsageError for a shape that does not fit; AvarcError for an unreadable image, a loss that is not finite, or
        an output that cannot be written; CheckpointError for an OUT.ckpt of another training; Interrupted on Ctrl-C.
    """
    check_output(out, WEIGHTS, overwrite=True)
    known = families.TOKENIZERS.get(family)
    torch.manual_seed(recipe.seed)
    network = known.new(image_size=image_size, **shape)
    network.to(device)  # only now: the CPU's generator makes the same first weights for every device
    of_family = known.training_loss(network)
    loss, made_of = published(of_family, terms, recipe, network, note)
    codes = of_family if isinstance(of_family, ReconstructionLoss) else None
    if codes and measures and measures != Measures():
        codes.use(measures)
        made_of |= {"measures": str(measures)}
    fit(
        network,
        loss,
        images,
        out,
        recipe,
        family=family,
        augment=augment,
        made_of=made_of,
        progress=progress,
        say=say,
    )
    if codes:
        note(codes.usage())
    return network


def published(
    loss: TokenizerLoss, terms: Terms | None, recipe: Recipe, network: TokenizerNetwork, note: Notify
) -> tuple[TokenizerLoss, dict[str, str]]:
    """The loss with terms of the published one, and what a training depends on through them.

    Raises: as `published_loss.make`.
    """
    if not isinstance(loss, PixelLoss):
        return loss, {}
    terms = terms or Terms()
    check(loss.published, terms, network.image_size)
    if message := left_out(loss.published, terms):
        note(message)
    if not terms.are_given():
        return loss, {}
    step = make(loss, terms, recipe, network.image_size, next(network.parameters()).device)
    return step, {"loss": describe(step)}


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
    progress: MetricsProgress,
    say: Notify,
) -> None:
    """Train a tokenizer in place by this loss and write it to `out`; as `train_tokenizer`.

    Args:
        made_of: what the training depends on besides shape and images. stated: what the file is to say besides.
    """
    augment = augment or Augment()
    device = next(network.parameters()).device
    batches = TrainingImages(images, network.image_size, augment, seed=recipe.seed)

    def loss_of_rows(step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        x, _, generator = batches.batch(step, rows)
        return loss(x.to(device).contiguous(memory_format=torch.channels_last), step, recipe.steps, generator)

    checkpoint = resume_file(out)
    subject = {"network": str(network.config), **batches.subject, **(made_of or {})}
    train(network, loss_of_rows, recipe, checkpoint, progress, subject=subject, kept=loss, say=say)
    preprocess = "resize-crop" if augment.mode == "crop" else "fit"
    save_tokenizer(network, out, family=family, preprocess=preprocess, stated=stated)
    checkpoint.unlink(missing_ok=True)
