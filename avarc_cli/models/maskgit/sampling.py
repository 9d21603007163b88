"""Drawing token sequences from a MaskGIT: all hidden tokens at once, of which the surest stay (arXiv:2202.04200).

Shapes: B images, L tokens, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avarc_cli.layers.sampling import restrict
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
) -> Tensor:
    """Tokens (B, L) int64, one image for each class id; arguments as `LikelihoodModel.sample`."""
    config = transformer.config
    ids_BL = torch.full((len(class_id_B), config.num_tokens), config.mask, device=class_id_B.device)
    for step in range(schedule.steps):
        done = (step + 1) / schedule.steps
        noise = schedule.temperature * (1 - done)
        logits_BLV = _logits(transformer, class_id_B, ids_BL, schedule.weight(guidance, step))
        if schedule.annealed:
            logits_BLV = logits_BLV / (0.5 + 0.8 * (1 - done))
        logits_BLV = restrict(logits_BLV, top_k, top_p)
        drawn_BL = (logits_BLV + noise * _gumbel(logits_BLV, generators)).argmax(-1)
        hidden_BL = ids_BL == config.mask
        ids_BL = torch.where(hidden_BL, drawn_BL, ids_BL)
        if step + 1 == schedule.steps:
            break
        chosen_BL = logits_BLV.gather(-1, drawn_BL[..., None])[..., 0]
        confidence_BL = (chosen_BL + noise * _gumbel(chosen_BL, generators)).masked_fill(~hidden_BL, torch.inf)
        keep_hidden = math.floor(config.num_tokens * math.acos(done) / (math.pi / 2))
        ids_BL = _hide_again(ids_BL, confidence_BL, hidden_BL.sum(1), keep_hidden, config.mask)
    return ids_BL


def _logits(transformer: MaskedTransformer, class_id_B: Tensor, ids_BL: Tensor, weight: float) -> Tensor:
    """Guided logits (B, L, V); with weight 1 they are those of the class."""
    if weight == 1:
        return transformer.logits(class_id_B, ids_BL)
    unconditional_B = torch.full_like(class_id_B, transformer.config.num_classes)
    logits = transformer.logits(torch.cat([class_id_B, unconditional_B]), ids_BL.repeat(2, 1))
    of_class, of_none = logits.chunk(2)
    return of_none + weight * (of_class - of_none)


def _hide_again(ids_BL: Tensor, confidence_BL: Tensor, hidden_B: Tensor, count: int, mask: int) -> Tensor:
    """Hide the `count` least sure tokens of each image, at least one and not all that were hidden."""
    least_B = hidden_B.sub(1).clamp(max=max(count, 1)).clamp(min=1)
    threshold_B1 = confidence_BL.sort(dim=1).values.gather(1, least_B[:, None] - 1)
    return ids_BL.masked_fill(confidence_BL <= threshold_B1, mask)


def _gumbel(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard Gumbel noise in the shape of `like`, each image's from its own generator."""
    uniform = torch.stack(
        [torch.rand(x.shape, generator=g, device=x.device) for x, g in zip(like, generators, strict=True)]
    )
    return -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()
