"""Drawing token sequences from a MaskGIT: the published schedules, and guidance.

Shapes: B images, L tokens, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avarc_cli.likelihood import Known, SamplerSettings
from avarc_cli.models.masked.sampling import unmask
from avarc_cli.models.maskgit.network import MaskedTransformer


@dataclass(frozen=True)
class Schedule:
    """How the steps of the sampler differ."""

    steps: int = 8
    """Passes; after each, fewer tokens are hidden."""
    temperature: float = 4.0
    """Of the noise in choices and in confidence, at the beginning; it falls to 0."""
    guidance: float = 1.5
    """The strength that it is meant for."""
    growth: str = "linear"
    """Of guidance: "constant", "linear", or "power-cosine" (late)."""
    annealed: bool = True
    """Whether logits are divided by a temperature that falls from 1.3 to 0.5."""

    @classmethod
    def of_length(cls, num_tokens: int) -> Schedule:
        """That of the published model of as many tokens (https://github.com/bytedance/1d-tokenizer)."""
        return PUBLISHED.get(num_tokens, cls())

    @property
    def settings(self) -> SamplerSettings:
        """As presets state them."""
        return SamplerSettings(schedule=self.growth, temperature=self.temperature, steps=self.steps)

    def weight(self, guidance: float, step: int) -> float:
        """How far to go from unconditional logits (0) over conditional ones (1), in this step.

        The reference calls 1 + guidance what is `guidance` here where it grows as "power-cosine".
        """
        done = step / self.steps
        if self.growth == "power-cosine":
            return 1 + guidance / 2 * (1 - math.cos(math.pi * done**3))
        return 1 + guidance * (done if self.growth == "linear" else 1)


PUBLISHED = {
    32: Schedule(8, 9.5, 4.5, "linear"),
    64: Schedule(8, 11.0, 3.0, "linear"),
    128: Schedule(64, 2.8, 5.9, "power-cosine"),
}


@torch.inference_mode()
def sample(
    transformer: MaskedTransformer,
    class_id_B: Tensor,
    schedule: Schedule,
    generators: Sequence[torch.Generator],
    guidance: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    known: Known | None = None,
) -> Tensor:
    """Tokens (B, L) int64, one image for each class id; arguments as `LikelihoodModel.sample`."""
    config, device = transformer.config, class_id_B.device
    ids_BL = torch.full((len(class_id_B), config.num_tokens), config.mask, device=device)
    if known is not None:
        tokens_L, kept_L = known.on(device)
        ids_BL = torch.where(kept_L, tokens_L, ids_BL)
    return unmask(
        lambda ids_BL, step: _logits(transformer, class_id_B, ids_BL, schedule.weight(guidance, step)),
        ids_BL,
        generators,
        mask=config.mask,
        steps=schedule.steps,
        temperature=schedule.temperature,
        annealed=schedule.annealed,
        top_k=top_k,
        top_p=top_p,
    )


def _logits(transformer: MaskedTransformer, class_id_B: Tensor, ids_BL: Tensor, weight: float) -> Tensor:
    """Guided logits (B, L, V); with weight 1 they are those of the class."""
    if weight == 1:
        return transformer.logits(class_id_B, ids_BL)
    unconditional_B = torch.full_like(class_id_B, transformer.config.num_classes)
    logits = transformer.logits(torch.cat([class_id_B, unconditional_B]), ids_BL.repeat(2, 1))
    of_class, of_none = logits.chunk(2)
    return of_none + weight * (of_class - of_none)
