"""What both kinds of MaskGen have behind the LikelihoodModel interface: captions for classes.

Shapes: R captions, T positions of a caption, D channels of its features, E of its pooled vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from avarc_cli.errors import UsageError
from avarc_cli.layers.class_rows import stored_bytes
from avarc_cli.layers.precision import Precision, inference
from avarc_cli.models.masked.likelihood import MaskedLikelihood
from avarc_cli.models.maskgen.config import MAX_SCORE
from avarc_cli.models.maskgen.joint import Captions, JointTransformer
from avarc_cli.text.features import CaptionFeatures

DEFAULT_STEPS = 16  # as many as the published sampler of 128 tokens takes
# Captions computed together: always as many, so that a caption's bits do not depend on how many there are.
CAPTIONS_AT_ONCE = 16  # not measured
Model = TypeVar("Model", bound="CaptionedLikelihood")


@dataclass(frozen=True)
class CaptionTable:
    """What a network knows of the captions that are its classes."""

    captions: Captions
    """Of the classes and, if there is one, of the empty caption in the last row."""
    num_classes: int

    @property
    def unconditional(self) -> int | None:
        """Row of the empty caption."""
        return self.num_classes if len(self.captions.context_RTC) > self.num_classes else None


class CaptionedLikelihood(MaskedLikelihood):
    """A MaskGen; it has no classes before `with_captions`."""

    onednn = True

    def __init__(
        self,
        network: JointTransformer,
        steps: int | None = None,
        *,
        unsmooth: float = 0.0,
        table: CaptionTable | None = None,
    ) -> None:
        """Score this network.

        Args:
            steps: passes that an order is cut into; None for `DEFAULT_STEPS`, or fewer where there are fewer tokens.
            unsmooth: label smoothing that is undone (`masked.likelihood.undo_smoothing`).
            table: of the captions; None before there are any.
        """
        self.transformer, self.unsmooth, self.table = network, unsmooth, table
        length = network.config.num_tokens
        self.cut(length, min(DEFAULT_STEPS, length) if steps is None else steps)
        self.text = network.config.text
        self.num_classes = 0 if table is None else table.num_classes
        self.unconditional: int | None = None if table is None else table.unconditional
        self.flops_per_token = self.steps * network.config.pass_flops // length

    @property
    def precision(self) -> Precision:
        return self.transformer.precision

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def captions(self) -> Captions:
        """What the network knows of the captions. Raises: UsageError before there are any."""
        if self.table is None:
            raise UsageError("this model has no captions yet", "it gives log p(image | caption)", "add --captions FILE")
        return self.table.captions

    def with_steps(self: Model, steps: int, *, unsmooth: float = 0.0) -> Model:
        return type(self)(self.transformer, steps, unsmooth=unsmooth, table=self.table)

    @inference
    def with_captions(self: Model, features: CaptionFeatures, *, aesthetic_score: float | None = None) -> Model:
        """As `LikelihoodModel.with_captions`.

        All positions of a caption are read, those behind its end too: the network was trained so.
        """
        config = self.transformer.config
        if aesthetic_score is not None and not config.score_width:
            raise UsageError("--aesthetic-score is for models that are given one", "this one is not", "leave it out")
        if aesthetic_score is not None and not 0 <= aesthetic_score <= MAX_SCORE:
            raise UsageError(f"--aesthetic-score {aesthetic_score:g}", f"it is a number from 0 to {MAX_SCORE:g}")
        parts = [features] if features.empty is None else [features, features.empty]
        for part in parts:
            if part.sequence_RTD.shape[1] != config.text_positions:
                raise UsageError(
                    f"these captions have {part.sequence_RTD.shape[1]} positions",
                    f"the model reads {config.text_positions}, those behind the end of a caption too",
                    f"encode them with {config.text.encoder}: avarc captions encode",
                )
        score = config.aesthetic_score if aesthetic_score is None else aesthetic_score
        table = CaptionTable(_computed(self.transformer, parts, score), len(features))
        return type(self)(self.transformer, self.steps, unsmooth=self.unsmooth, table=table)

    def evaluated(self, tokens: int) -> int:
        """All positions, whatever is scored."""
        return self.transformer.config.positions

    @property
    def pass_bytes_per_position(self) -> int:
        c, item = self.transformer.config, self.precision.activations.itemsize
        # Both streams and their sums in float32; normed input, queries, keys and values of each stream and of both
        # together, or twice the MLP's hidden vector.
        return 2 * c.width * 4 + c.width * item + max(7 * c.width * item, 2 * c.hidden * item)

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights, and of what was computed once per caption."""
        tensors = [] if self.table is None else self.table.captions.tensors()
        return stored_bytes(self.transformer) + sum(tensor.nbytes for tensor in tensors)


def _computed(network: JointTransformer, parts: list[CaptionFeatures], score: float) -> Captions:
    """`JointTransformer.captions` of all captions of these features, `CAPTIONS_AT_ONCE` at a time."""
    chunks = [network.captions(*rows, _scores(score, network.device)) for rows in _chunks(parts, network.device)]
    joined = [
        torch.cat(tensors)[: sum(map(len, parts))] for tensors in zip(*(c.tensors() for c in chunks), strict=True)
    ]
    return chunks[0].with_tensors(joined)


def _scores(score: float, device: torch.device) -> Tensor:
    return torch.full((CAPTIONS_AT_ONCE,), score, dtype=torch.float32, device=device)


def _chunks(parts: list[CaptionFeatures], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Sequences and pooled vectors, `CAPTIONS_AT_ONCE` at a time; the last caption fills up the last chunk."""
    sequence_RTD = torch.cat([part.sequence_RTD for part in parts])
    pooled_RE = torch.cat([part.pooled_RE for part in parts if part.pooled_RE is not None])
    for start in range(0, len(sequence_RTD), CAPTIONS_AT_ONCE):
        rows = torch.arange(start, start + CAPTIONS_AT_ONCE).clamp(max=len(sequence_RTD) - 1)
        yield sequence_RTD[rows].to(device), pooled_RE[rows].to(device)
