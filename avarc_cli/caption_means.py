"""A model of captions whose candidates have several captions each: a score is the mean over a candidate's captions.

Each pair of a sequence and a candidate becomes as many pairs as the candidate has captions. The mean is taken of the
log-probabilities of every token, so those of an image still sum to its score.

Shapes: P pairs of (sequence, candidate), M pairs of (sequence, caption), N candidates, R captions, B token sequences,
L tokens, T tokens of the segments at hand, C captions of a candidate at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avarc_cli.likelihood import LikelihoodModel


@dataclass
class MeanState:
    """A state of the model of captions, and which of its pairs belong together."""

    inner: Any
    """Of M pairs; those of one candidate follow each other."""
    count_P: Tensor
    """int64, on the CPU: captions of each pair's candidate."""


class MeanOfCaptions(LikelihoodModel):
    """Candidate 0 .. N - 1, each with one or more of the captions of another model; then the empty caption."""

    def __init__(self, base: LikelihoodModel, candidate_R: Sequence[int]) -> None:
        """Combine captions.

        Args:
            base: a model whose classes are R captions.
            candidate_R: which candidate each caption is of.
        """
        self.base, self.candidate_R = base, tuple(candidate_R)
        self.captions = [
            torch.tensor([r for r, owner in enumerate(candidate_R) if owner == n]) for n in range(max(candidate_R) + 1)
        ]
        for name in LikelihoodModel.__annotations__:  # it can do what the base can do
            setattr(self, name, getattr(base, name))
        self.num_classes = len(self.captions)
        self.unconditional = None
        self.flops_per_token = base.flops_per_token * len(candidate_R) // self.num_classes
        self.most = max(map(len, self.captions))
        """C."""
        if base.unconditional is not None:
            self.unconditional = self.num_classes
            self.captions.append(torch.tensor([base.unconditional]))

    def begin(
        self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None
    ) -> MeanState:
        sequence_M, caption_M, count_P = self._expanded(sequence_P, class_id_P)
        return MeanState(self.base.begin(tokens_BL, sequence_M, caption_M, order_BL), count_P)

    def extend(self, state: MeanState, stop: int, *, keep_cache_segments: int) -> Tensor:
        return _means(self.base.extend(state.inner, stop, keep_cache_segments=keep_cache_segments), state.count_P)

    def select(self, state: MeanState, keep_Q: Tensor) -> MeanState:
        keep_Q = keep_Q.cpu()
        return MeanState(self.base.select(state.inner, _rows(state.count_P, keep_Q)), state.count_P[keep_Q])

    def join(self, states: Sequence[MeanState]) -> MeanState:
        counts = [state.count_P for state in states]
        return MeanState(self.base.join([state.inner for state in states]), torch.cat(counts))

    def fork(
        self,
        state: MeanState,
        keep_Q: Tensor,
        tokens_BL: Tensor,
        sequence_Q: Tensor,
        stop: int,
        order_BL: Tensor | None = None,
    ) -> MeanState:
        keep_Q = keep_Q.cpu()
        count_Q, rows_M = state.count_P[keep_Q], _rows(state.count_P, keep_Q)
        sequence_M = sequence_Q.repeat_interleave(count_Q.to(sequence_Q.device))
        return MeanState(self.base.fork(state.inner, rows_M, tokens_BL, sequence_M, stop, order_BL), count_Q)

    def block_parallel(
        self,
        tokens_BL: Tensor,
        sequence_P: Tensor,
        class_id_P: Tensor,
        order_BL: Tensor | None = None,
        *,
        revealed: int,
    ) -> Tensor:
        sequence_M, caption_M, count_P = self._expanded(sequence_P, class_id_P)
        return _means(self.base.block_parallel(tokens_BL, sequence_M, caption_M, order_BL, revealed=revealed), count_P)

    def summary(self, tokens_BL: Tensor) -> Tensor:
        return self.base.summary(tokens_BL)

    def sample(self, class_id_B: Tensor, *, generators: Sequence[torch.Generator], **options: Any) -> Tensor:
        """As `LikelihoodModel.sample`, each image from a caption of its candidate that its generator draws."""
        own = [self._draw(n, generator) for n, generator in zip(class_id_B.tolist(), generators, strict=True)]
        return self.base.sample(torch.tensor(own, device=class_id_B.device), generators=generators, **options)

    def _draw(self, candidate: int, generator: torch.Generator) -> int:
        captions = self.captions[candidate]
        if len(captions) == 1:  # which leaves the generator as it is
            return int(captions[0])
        return int(captions[torch.randint(len(captions), (), generator=generator, device=generator.device)])

    def _expanded(self, sequence_P: Tensor, class_id_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(sequence_M, caption_M, count_P) of pairs."""
        each = [self.captions[n] for n in class_id_P.tolist()]
        count_P = torch.tensor([len(captions) for captions in each], dtype=torch.int64)
        caption_M = torch.cat(each) if each else torch.empty(0, dtype=torch.int64)
        sequence_M = sequence_P.repeat_interleave(count_P.to(sequence_P.device))
        return sequence_M, caption_M.to(class_id_P.device), count_P

    def evaluated(self, tokens: int) -> int:
        return self.base.evaluated(tokens) * self.most

    def with_steps(self, steps: int, *, unsmooth: float = 0.0) -> MeanOfCaptions:
        return MeanOfCaptions(self.base.with_steps(steps, unsmooth=unsmooth), self.candidate_R)

    @property
    def resident_bytes(self) -> int:
        return self.base.resident_bytes

    def bytes_per_token(self, *, cached: bool) -> int:
        return self.base.bytes_per_token(cached=cached) * self.most


def _rows(count_P: Tensor, keep_Q: Tensor) -> Tensor:
    """The rows (M,) of the inner state that these pairs consist of."""
    count_Q = count_P[keep_Q]
    start_Q = (count_P.cumsum(0) - count_P)[keep_Q]
    first_Q = count_Q.cumsum(0) - count_Q  # in the result
    return torch.arange(int(count_Q.sum())) + (start_Q - first_Q).repeat_interleave(count_Q)


def _means(log_prob_MT: Tensor, count_P: Tensor) -> Tensor:
    """The means (P, T) over each pair's rows. Sums go caption by caption, so that the order is fixed on any device."""
    count_P = count_P.to(log_prob_MT.device)
    start_P = count_P.cumsum(0) - count_P
    total_PT = log_prob_MT[start_P]
    for caption in range(1, int(count_P.max()) if len(count_P) else 1):
        has_P = count_P > caption
        total_PT[has_P] += log_prob_MT[start_P[has_P] + caption]
    return total_PT / count_P[:, None]
