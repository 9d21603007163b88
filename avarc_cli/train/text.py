"""Training of a small text encoder: captions of the same name become alike, those of different names different.

Shapes: R captions of a batch, T positions, K pieces of a word, D channels, N names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.errors import UsageError
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.sampling import generator_of
from avarc_cli.outputs import check_new_folder
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.text.small import FIRST, NOTHING, SmallTextConfig, SmallTextNetwork, tokens
from avarc_cli.train.loop import conclude, train
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.resume import resume_file
from avarc_cli.train.save import save_text_encoder

UNKNOWN_WORDS = 0.3
"""Fraction of the words that are replaced at random in training, so that words it has never seen change little."""


def train_text_encoder(
    captions_of: Mapping[str, Sequence[str]],
    out: Path,
    config: SmallTextConfig,
    recipe: Recipe,
    *,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
) -> SmallTextNetwork:
    """Train an encoder whose mean feature tells which name a caption belongs to; write it to the new folder `out`.

    The linear layer that tells the names is not kept. It runs on the CPU, and resumes as `train_tokenizer` does.

    Args:
        captions_of: the captions of each name.
    Raises: UsageError for fewer than two names; otherwise as `train_tokenizer`.
    """
    check_new_folder(out)
    if len(captions_of) < 2:
        raise UsageError(
            "a text encoder learns to tell names apart, and there is only one",
            fix="write the captions of two or more names",
        )
    torch.manual_seed(recipe.seed)
    encoder, head = SmallTextNetwork(config), nn.Linear(config.width, len(captions_of))
    texts = [tokens(caption, config) for captions in captions_of.values() for caption in captions]
    names = torch.tensor([n for n, captions in enumerate(captions_of.values()) for _ in captions])
    longest = max(map(len, texts))
    if longest > config.positions:
        raise UsageError(
            "a caption is too long for this text encoder",
            f"it has {longest} words and its end, the encoder {config.positions} positions",
            f"write --positions {longest}, or shorten the caption",
        )
    ids_RTK, length_R = encoder.ids(texts)

    def loss_of_rows(step: int, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        generator = generator_of(recipe.seed, step)
        batch = torch.randint(len(texts), (rows.of,), generator=generator)
        words = rows.take(_with_unknown(ids_RTK[batch], config.pieces, generator))
        first = int(torch.randint(1 + config.positions - words.shape[1], (), generator=generator))
        chosen = rows.take(batch)
        features = encoder(words, length_R[chosen], first)
        logits = head(features.sum(1) / length_R[chosen, None])
        right = (logits.argmax(1) == names[chosen]).float().mean()
        return F.cross_entropy(logits, names[chosen]), {"accuracy": float(right)}

    subject = {"network": str(config), "captions": repr(dict(captions_of))}
    both = nn.ModuleList([encoder, head])
    trained = train(both, loss_of_rows, recipe, resume_file(out), progress, subject=subject, say=say)
    conclude(trained, out, lambda: save_text_encoder(encoder, out))
    return encoder


def _with_unknown(ids_RTK: Tensor, pieces: int, generator: torch.Generator) -> Tensor:
    """The same captions with some words replaced by words that do not exist."""
    unknown = torch.randint(FIRST, pieces, ids_RTK.shape, generator=generator)
    is_word_RT = ids_RTK[..., 0] >= FIRST
    replaced_RT = (torch.rand(is_word_RT.shape, generator=generator) < UNKNOWN_WORDS) & is_word_RT
    return torch.where(replaced_RT[..., None] & (ids_RTK != NOTHING), unknown, ids_RTK)
