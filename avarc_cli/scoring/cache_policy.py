"""Which keys and values the engine keeps between two forward passes.

Shapes: G images, O orders, S samples, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.log_prob_table import Pairs
from avarc_cli.scoring.plan import Step
from avarc_cli.scoring.scores import IntN, TokensN

# Fraction of an image's tokens. Samples that share less with their image are scored from scratch, because the tokens
# saved are not worth a forward pass of their own. On 60 digits with exhaustive:3, every value from 1/1000 to 1/8 took
# the same time within noise (6.3 to 6.6 s on one thread), no reuse 7.3 s. Not measured on larger models.
LEAST_SHARED = 1 / 64


@dataclass
class Batch:
    """Pairs that are scored together: all on the same segments, all originals (sample 0) or none."""

    pairs: Pairs
    """In the order of the state's rows."""
    scored: int = 0
    """Segments scored."""
    cached: int = 0
    """Segments, from the first, whose keys and values the state has. A batch can be extended if it has those of all
    scored segments."""
    state: Any = None
    """The model's; None before the batch begins and after `free_cache`."""

    def take(self, model: LikelihoodModel, rows: IntN) -> Batch:
        """A batch of these pairs only."""
        state = None if self.state is None else model.select(self.state, torch.from_numpy(rows))
        return Batch(self.pairs.take(rows), self.scored, self.cached, state)

    @staticmethod
    def joined(model: LikelihoodModel, batches: Sequence[Batch]) -> Batch:
        """One batch of the pairs of all these, which are alike."""
        first = batches[0]
        if len(batches) == 1:
            return first
        state = None if first.state is None else model.join([batch.state for batch in batches])
        return Batch(Pairs.joined([batch.pairs for batch in batches]), first.scored, first.cached, state)

    @property
    def is_original(self) -> bool:
        """Whether these are the images' own tokens. The batch must not be empty."""
        return bool(self.pairs.sample[0] == 0)

    def free_cache(self) -> None:
        """Drop the state with its keys and values."""
        self.state, self.cached = None, 0


class CachePolicy:
    """What is cached after each stage: segments that a later stage extends, or that new samples share."""

    def __init__(self, segment_ends: tuple[int, ...], shared_GOS: IntN, max_tokens: int | None) -> None:
        """shared_GOS: segments that samples share with their image. max_tokens: cached in all batches, None: any."""
        self.ends, self.shared_GOS, self.max_tokens = (0, *segment_ends), shared_GOS, max_tokens

    def segments_to_keep(self, batch: Batch, step: Step) -> int:
        """Segments to keep cached when the batch has been scored to the end of the stage.

        All if a later stage extends them; else as many as samples that begin in this stage or later share with them.
        """
        stop = step.stage.segments
        if step.segments_grow:
            return stop
        if not batch.is_original:
            return 0
        shared_PS = self.shared_GOS[batch.pairs.image, batch.pairs.order, : step.last_samples]
        begun_P = step.samples_begun_O[batch.pairs.order].clip(min=1)
        to_come_PS = np.arange(shared_PS.shape[1]) >= begun_P[:, None]
        return int(shared_PS[to_come_PS & (shared_PS < stop)].max(initial=0))

    def needed_later(self, batch: Batch, step: Step) -> bool:
        """Whether a later stage may use the batch's cache."""
        return step.segments_grow or (step.samples_grow and batch.is_original)

    def evict(self, batches: Sequence[Batch], step: Step) -> None:
        """Free the largest caches until the rest fits. Their pairs must be scored again from the first segment."""
        while self.max_tokens is not None and sum(map(self._tokens, batches)) > self.max_tokens:
            largest = max(batches, key=self._tokens)
            largest.free_cache()
            if step.last_segments > largest.scored:
                largest.scored = 0

    def _tokens(self, batch: Batch) -> int:
        return len(batch.pairs) * self.ends[batch.cached]


def shared_segments(tokens_GSL: TokensN, order_GOL: IntN | None, segment_ends: tuple[int, ...]) -> IntN:
    """How many of its first segments each sample shares with sample 0 along each order, (G, O, S).

    0 if that is not worth reusing.
    """
    same_GSL = tokens_GSL == tokens_GSL[:, :1]
    if same_GSL.ndim == 4:  # continuous tokens
        same_GSL = same_GSL.all(-1)
    same_GOSL = same_GSL[:, None]
    if order_GOL is not None:
        same_GOSL = np.take_along_axis(same_GOSL, order_GOL[:, :, None], axis=-1)
    ends = np.array([0, *segment_ends])
    shared_GOS: IntN = same_GOSL.cumprod(-1)[..., ends[1:] - 1].sum(-1)
    return np.where(ends[shared_GOS] < LEAST_SHARED * ends[-1], 0, shared_GOS)
