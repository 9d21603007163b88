"""Drawing token sequences from a RAR in raster order, with classifier-free guidance that grows along the sequence.

Shapes: B images, L tokens, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.layers.sampling import restrict
from avarc_cli.likelihood import SamplerSettings
from avarc_cli.models.rar.modulation import SegmentModulation
from avarc_cli.models.rar.network import RAR


@dataclass(frozen=True)
class Schedule:
    """How guidance grows from the first token to the last."""

    temperature: float = 1.0
    """Logits are divided by it where there is guidance."""
    power: float = 1.0
    """The larger, the later guidance begins; 0 for the same guidance everywhere."""
    guidance: float = 1.5
    """The strength that it is meant for."""

    @classmethod
    def of_width(cls, width: int) -> Schedule:
        """That of the published model of this width (https://github.com/bytedance/1d-tokenizer)."""
        return PUBLISHED.get(width, cls())

    @property
    def settings(self) -> SamplerSettings:
        """As presets state them."""
        return SamplerSettings(schedule=f"power-cosine, {self.power}", temperature=self.temperature)

    def weight(self, guidance: float, done: float) -> float:
        """How far to go from unconditional logits (0) over conditional ones (1); the reference's scale is 1 + guidance.

        Args:
            done: fraction of the tokens that are drawn.
        """
        return 1 + guidance / 2 * (1 - math.cos(math.pi * done**self.power))


PUBLISHED = {  # B, L, XL, XXL
    768: Schedule(1.0, 2.75, 15.0),
    1024: Schedule(1.02, 2.5, 14.5),
    1280: Schedule(1.02, 1.5, 5.9),
    1408: Schedule(1.02, 1.2, 7.0),
}


@torch.inference_mode()
def sample(
    rar: RAR,
    modulation: SegmentModulation,
    class_id_B: Tensor,
    schedule: Schedule,
    generators: Sequence[torch.Generator],
    guidance: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Tensor:
    """Tokens (B, L) int64, one image for each class id; arguments as `LikelihoodModel.sample`."""
    length, count = rar.config.ends[-1], len(class_id_B)
    class_ids, temperature = class_id_B, 1.0
    if guidance:
        class_ids = torch.cat([class_id_B, torch.full_like(class_id_B, rar.config.num_classes)])
        temperature = schedule.temperature
    on_host, kv_cache = class_ids.tolist(), KVCache(rar.config.depth, capacity=length + 1)
    place = torch.arange(length, device=class_id_B.device)
    x, start, tokens = rar.embed_prefix(class_ids, place[:1].expand_as(class_ids)), 0, list[Tensor]()
    for j in range(length):
        hidden = rar.hidden(x, modulation.of(on_host, start, j + 2), kv_cache)[:, -1:]
        logits_B1V, *unconditional = rar.lm_head(hidden).float().split(count)
        if unconditional:
            weight = schedule.weight(guidance, j / length)
            logits_B1V = unconditional[0] + weight * (logits_B1V - unconditional[0])
        logits_B1V = restrict(logits_B1V / temperature, top_k, top_p)
        drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(logits_B1V.softmax(-1), generators, strict=True)]
        tokens.append(torch.cat(drawn))
        if j + 1 < length:
            tokens_P1 = tokens[-1].repeat(len(class_ids) // count, 1)
            x, start = rar.embed_tokens(tokens_P1, place[None, j : j + 1], place[None, j + 1 : j + 2]), j + 2
    return torch.cat(tokens, dim=1)
