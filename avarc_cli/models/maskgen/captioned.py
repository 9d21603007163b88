"""What both kinds of MaskGen have behind the LikelihoodModel interface: captions for classes.

Shapes: B images, R captions, T positions of a caption, D channels of its features, E of its pooled vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.errors import UsageError
from avarc_cli.layers.precision import Precision, check_gradients, inference
from avarc_cli.layers.stored import plain_state, stored_bytes
from avarc_cli.layers.weight_decay import ONE_D_TOKENIZER, decays_unless_named
from avarc_cli.models.masked.likelihood import MaskedLikelihood
from avarc_cli.models.maskgen.config import ENCODER, JointConfig
from avarc_cli.models.maskgen.joint import Captions, JointTransformer
from avarc_cli.settings import MAX_SCORE
from avarc_cli.text.features import CaptionFeatures
from avarc_cli.trainable import CaptionTrainableModel

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


class CaptionedLikelihood(MaskedLikelihood, CaptionTrainableModel):
    """A MaskGen; it has no classes before `with_captions`."""

    uses_library = True
    config: JointConfig

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
        self.network, self.config = network, network.config
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
        rows = [(_all_positions(part, config), part.pooled_RE) for part in parts]
        score = config.aesthetic_score if aesthetic_score is None else aesthetic_score
        table = CaptionTable(_computed(self.transformer, rows, score), len(features))
        return type(self)(self.transformer, self.steps, unsmooth=self.unsmooth, table=table)

    def decays(self, name: str, parameter: Tensor) -> bool:
        return decays_unless_named(name, parameter, ONE_D_TOKENIZER)

    def trained_captions(self, features: CaptionFeatures, dropped_B: Tensor, score_B: Tensor | None) -> Captions:
        """What the network knows of one caption for each image, with gradients; a dropped one is the empty caption.

        Args:
            score_B: as for `caption_loss`.
        Raises: UsageError for features without those of the empty caption, for a score where the model is given none,
            and for a model in 8 bits.
        """
        check_gradients(self.precision)
        config = self.config
        if score_B is not None and not config.score_width:
            raise UsageError("aesthetic scores are for models that are given one", "this one is not", "leave them out")
        empty, pooled_BE = features.empty, features.pooled_RE
        if empty is None or empty.pooled_RE is None or pooled_BE is None:
            raise UsageError(
                "the empty caption was not encoded", "it stands for captions that are left out in training"
            )
        dropped_B = dropped_B.to(pooled_BE.device)
        given_BTD, empty_1TD = _all_positions(features, config), _all_positions(empty, config)
        sequence_BTD = torch.where(dropped_B[:, None, None], empty_1TD, given_BTD)
        pooled_BE = torch.where(dropped_B[:, None], empty.pooled_RE, pooled_BE)
        if score_B is None:
            score_B = torch.full((len(dropped_B),), config.aesthetic_score)
        return self.transformer.captions(*(x.to(self.device) for x in (sequence_BTD, pooled_BE, score_B)))

    def with_unread(self, loss: Tensor) -> Tensor:
        """The same loss, in which weights that nothing reads have gradients of zero.

        In the reference they are zeros, not absent: these weights decay.
        """
        unread = sum(parameter.sum() for parameter in self.transformer.unread())
        return loss + 0.0 * unread

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        return plain_state(self.transformer)

    def checkpoint_metadata(self) -> dict[str, str]:
        """What the tensors do not tell, under the reference's names but for the text encoder's."""
        config = self.config
        score = {"sample_aesthetic_score": repr(config.aesthetic_score)} if config.score_width else {}
        return {
            "decoder_num_heads": str(config.heads),
            "text_context_length": str(config.text_positions),
            "text_encoder": config.text_encoder,
        } | score

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


def _all_positions(features: CaptionFeatures, config: JointConfig) -> Tensor:
    """The features of all positions that the network reads, (R, T, D).

    CLIP's captions fill them. Those of other encoders end earlier, and are followed by zeros.
    Raises: UsageError for captions of CLIP with fewer positions, and for too many.
    """
    sequence_RTD, count = features.sequence_RTD, config.text_positions
    missing = count - sequence_RTD.shape[1]
    if missing < 0 or (missing and config.text_encoder == ENCODER):
        raise UsageError(
            f"these captions have {sequence_RTD.shape[1]} positions",
            f"the model reads {count}, those behind the end of a caption too",
            f"encode them with {config.text_encoder}: avarc captions encode",
        )
    return F.pad(sequence_RTD, (0, 0, 0, missing)) if missing else sequence_RTD


Rows: TypeAlias = "tuple[Tensor, Tensor | None]"
"""Sequences (R, T, D) and pooled vectors (R, E) of captions."""


def _computed(network: JointTransformer, parts: list[Rows], score: float) -> Captions:
    """`JointTransformer.captions` of all these captions, `CAPTIONS_AT_ONCE` at a time."""
    chunks = [network.captions(*rows, _scores(score, network.device)) for rows in _chunks(parts, network.device)]
    count = sum(len(sequence_RTD) for sequence_RTD, _ in parts)
    joined = [torch.cat(tensors)[:count] for tensors in zip(*(c.tensors() for c in chunks), strict=True)]
    return chunks[0].with_tensors(joined)


def _scores(score: float, device: torch.device) -> Tensor:
    return torch.full((CAPTIONS_AT_ONCE,), score, dtype=torch.float32, device=device)


def _chunks(parts: list[Rows], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Sequences and pooled vectors, `CAPTIONS_AT_ONCE` at a time; the last caption fills up the last chunk."""
    sequence_RTD = torch.cat([sequence_RTD for sequence_RTD, _ in parts])
    pooled_RE = torch.cat([pooled_RE for _, pooled_RE in parts if pooled_RE is not None])
    for start in range(0, len(sequence_RTD), CAPTIONS_AT_ONCE):
        rows = torch.arange(start, start + CAPTIONS_AT_ONCE).clamp(max=len(sequence_RTD) - 1)
        yield sequence_RTD[rows].to(device), pooled_RE[rows].to(device)
