"""Training of a tokenizer in two stages: on the tokens of another tokenizer, the teacher, then on pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from avarc_cli import families
from avarc_cli.data.datasets import ImageSet
from avarc_cli.errors import UsageError
from avarc_cli.family import TokenizerFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.loaded import LoadedTokenizer
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.train.images import Augment
from avarc_cli.train.loop import fingerprint
from avarc_cli.train.published_loss import Terms
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.run import Run
from avarc_cli.train.save import check_place
from avarc_cli.train.tokenizer import fit, published
from avarc_cli.zoo import checkpoint

TEACHER = "codes_of_sha256"  # in the metadata of a first stage: the file of its teacher


def train_first_stage(
    images: ImageSet,
    out: Path,
    teacher: LoadedTokenizer,
    shape: Mapping[str, Any],
    recipe: Recipe,
    *,
    family: str,
    augment: Augment | None = None,
    held_out: ImageSet | None = None,
    run: Run | None = None,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
) -> TokenizerNetwork:
    """Train a tokenizer to predict the teacher's tokens and write it to `out`, where a second stage can begin.

    It runs on the teacher's device, and resumes as `train_tokenizer` does.

    Args:
        shape: of the network, in the family's own terms (`TokenizerFamily.first_stage`).
        family: a name in `families.TOKENIZERS`.
        augment, held_out, run, progress, say: as for `train_tokenizer`.
    Raises: UsageError for a teacher of the wrong family, or a shape that does not fit; otherwise as `train_tokenizer`.
    """
    check_place(out)
    known = families.TOKENIZERS.get(family)
    _check_teacher(teacher, known)
    torch.manual_seed(recipe.seed)
    network, loss = known.first_stage(teacher.network, **shape)
    made_of = {"teacher": fingerprint(teacher.network)}
    stated = {TEACHER: teacher.sha256}
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
        draws=False,
        held_out=held_out,
        run=run,
        progress=progress,
        say=say,
    )
    return network


def train_second_stage(
    images: ImageSet,
    out: Path,
    first: Path,
    teacher: LoadedTokenizer,
    recipe: Recipe,
    *,
    family: str,
    augment: Augment | None = None,
    terms: Terms | None = None,
    held_out: ImageSet | None = None,
    run: Run | None = None,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
    note: Notify = no_message,
) -> TokenizerNetwork:
    """Train what decodes after a first stage, beginning with the teacher's decoder, and write the tokenizer to `out`.

    It runs on the teacher's device, and resumes as `train_tokenizer` does.

    Args:
        first: file of `train_first_stage`.
        family, augment, progress, say: as for `train_first_stage`. terms, note: as for `train_tokenizer`.
    Raises: UsageError for a file of no first stage, or a teacher that is not the one it was trained with;
        CheckpointError for a file that cannot be read; otherwise as `train_tokenizer`.
    """
    check_place(out)
    known = families.TOKENIZERS.get(family)
    _check_teacher(teacher, known)
    read = checkpoint.read(first)
    if read.metadata.get(TEACHER) not in (None, teacher.sha256):
        raise UsageError(
            f"{first} predicts the codes of another tokenizer",
            f"that has sha256 {read.metadata[TEACHER]}; {teacher.file} has {teacher.sha256}",
            "name that one with --codes-of",
        )
    stated = ConfigSources(((f"the metadata of {first}", read.metadata),))
    torch.manual_seed(recipe.seed)  # of a discriminator
    network, loss = known.second_stage(read.tensors, stated, str(first), teacher.network)
    loss, of_loss, stated_of_loss = published(loss, terms, recipe, network, note)
    made_of = {"beginning": fingerprint(network), **of_loss}
    fit(
        network,
        loss,
        images,
        out,
        recipe,
        family=family,
        augment=augment,
        made_of=made_of,
        stated=stated_of_loss,
        held_out=held_out,
        run=run,
        progress=progress,
        say=say,
    )
    return network


def _check_teacher(teacher: LoadedTokenizer, known: TokenizerFamily) -> None:
    """Raises: UsageError for a teacher of another family than this one learns from."""
    if known.teacher and teacher.family != known.teacher:
        title = families.TOKENIZERS.get(known.teacher).title
        raise UsageError(
            f"a {known.title} cannot predict the codes of {teacher.name}",
            f"it is a {families.TOKENIZERS.get(teacher.family).title}, and a {title} is needed",
            f"name a {title} with --codes-of",
        )
