"""Drawing token sequences: all hidden tokens at once, of which the surest stay (arXiv:2202.04200).

Shapes: B images, L tokens, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from avarc_cli.layers.sampling import gumbel, restrict


def unmask(
    logits: Callable[[Tensor, int], Tensor],
    ids_BL: Tensor,
    generators: Sequence[torch.Generator],
    *,
    mask: int,
    steps: int,
    temperature: float,
    annealed: bool = True,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Tensor:
    """Draw the hidden tokens of ids_BL (B, L) int64, as many of each image; returns all tokens (B, L).

    Args:
        logits: of ids (B, L) in a step from 0 on, guided, (B, L, V) float32.
        mask: the id that stands for a hidden token. steps: passes in which they are drawn.
        temperature: of the noise in choices and in confidence, at the beginning; it falls to 0.
        annealed: whether logits are divided by a temperature that falls from 1.3 to 0.5.
        generators, top_k, top_p: as `LikelihoodModel.sample`.
    """
    hidden_at_first = int((ids_BL[:1] == mask).sum())
    for step in range(steps):
        done = (step + 1) / steps
        noise = temperature * (1 - done)
        logits_BLV = logits(ids_BL, step)
        if annealed:
            logits_BLV = logits_BLV / (0.5 + 0.8 * (1 - done))
        logits_BLV = restrict(logits_BLV, top_k, top_p)
        drawn_BL = (logits_BLV + noise * gumbel(logits_BLV, generators)).argmax(-1)
        hidden_BL = ids_BL == mask
        ids_BL = torch.where(hidden_BL, drawn_BL, ids_BL)
        if step + 1 == steps:
            break
        chosen_BL = logits_BLV.gather(-1, drawn_BL[..., None])[..., 0]
        confidence_BL = (chosen_BL + noise * gumbel(chosen_BL, generators)).masked_fill(~hidden_BL, torch.inf)
        keep_hidden = math.floor(hidden_at_first * math.acos(done) / (math.pi / 2))
        ids_BL = _hide_again(ids_BL, confidence_BL, hidden_BL.sum(1), keep_hidden, mask)
    return ids_BL


def _hide_again(ids_BL: Tensor, confidence_BL: Tensor, hidden_B: Tensor, count: int, mask: int) -> Tensor:
    """Hide the `count` least sure tokens of each image, at least one and not all that were hidden."""
    least_B = hidden_B.sub(1).clamp(max=max(count, 1)).clamp(min=1)
    threshold_B1 = confidence_BL.sort(dim=1).values.gather(1, least_B[:, None] - 1)
    return ids_BL.masked_fill(confidence_BL <= threshold_B1, mask)
