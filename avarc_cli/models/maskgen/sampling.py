"""Drawing codes from a MaskGen VQ: the published schedule, and guidance. Shapes: B images, L tokens, V codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avarc_cli.errors import UsageError
from avarc_cli.likelihood import SamplerSettings
from avarc_cli.models.masked.sampling import unmask
from avarc_cli.models.maskgen.joint import Captions
from avarc_cli.models.maskgen.network import MaskGen


@dataclass(frozen=True)
class Schedule:
    """How the steps of the sampler differ."""

    steps: int = 16
    """Passes; after each, fewer tokens are hidden."""
    temperature: float = 2.0
    """Of the noise in choices and in confidence, at the beginning; it falls to 0."""
    guidance: float = 12.0
    """The strength that it is meant for."""

    @property
    def settings(self) -> SamplerSettings:
        """As presets state them."""
        return SamplerSettings(schedule="cosine", temperature=self.temperature, steps=self.steps)

    def weight(self, guidance: float, step: int) -> float:
        """How far to go from unconditional logits (0) over conditional ones (1), in this step.

        The reference's guided logits are cond + g (cond - null), so this is 1 + g; g grows along a cosine from 1 to
        `guidance`. Without guidance it is 1.
        """
        if not guidance:
            return 1.0
        done = (step + 1) / self.steps
        return 2 + (guidance - 1) * (1 - math.cos(math.pi * done)) / 2


SCHEDULE = Schedule()
"""That of the published models."""


@torch.inference_mode()
def sample(
    transformer: MaskGen,
    captions: Captions,
    row_B: Tensor,
    empty: int | None,
    schedule: Schedule,
    generators: Sequence[torch.Generator],
    guidance: float,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Tensor:
    """Tokens (B, L) int64, one image for each caption.

    Args:
        row_B: caption of each image. empty: row of the empty caption, None where it is not there.
        generators, guidance, top_k, top_p: as `LikelihoodModel.sample`.
    Raises: UsageError for guidance without the empty caption.
    """
    config, null_B = transformer.config, empty_rows(row_B, empty, guidance)

    def logits(ids_BL: Tensor, step: int) -> Tensor:
        weight = schedule.weight(guidance, step)
        if weight == 1 or null_B is None:
            return transformer.logits(captions, row_B, ids_BL)
        both = transformer.logits(captions, torch.cat([row_B, null_B]), ids_BL.repeat(2, 1))
        of_caption, of_none = both.chunk(2)
        return of_none + weight * (of_caption - of_none)

    return unmask(
        logits,
        torch.full((len(row_B), config.num_tokens), config.mask, device=row_B.device),
        generators,
        mask=config.mask,
        steps=schedule.steps,
        temperature=schedule.temperature,
        top_k=top_k,
        top_p=top_p,
    )


def empty_rows(row_B: Tensor, empty: int | None, guidance: float) -> Tensor | None:
    """The empty caption for each image; None without guidance. Raises: UsageError where it is needed and not there."""
    if not guidance:
        return None
    if empty is None:
        raise UsageError(
            "guidance needs the empty caption",
            "its features are not among those of the captions",
            "encode the captions again with avarc captions encode, or write --guidance 0",
        )
    return torch.full_like(row_B, empty)
