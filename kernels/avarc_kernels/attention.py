"""Block-causal attention without a mask.

Shapes: P sequences, H heads, T new positions, S prefix and new ones, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def segment_attention(q_PHTD: Tensor, k_PHSD: Tensor, v_PHSD: Tensor, ends: Sequence[int], scale: float) -> Tensor:
    """Attention in which every position sees its own segment and all that came before, nothing later.

    Equals masked attention with a block-causal mask, but one unmasked call a segment, so that
    no masked tile is computed and every backend's fastest (flash) path applies.

    Args:
        q_PHTD: queries of the T new positions.
        k_PHSD, v_PHSD: keys and values of the prefix followed by the new positions, S >= T.
        ends: end of each new segment, counted in new positions, increasing; the last is T.
        scale: multiplies q @ k.T before the softmax.
    Returns: (P, H, T, D), in q's dtype.
    Raises: ValueError when the segment ends do not cover the new positions.
    """
    new, prefix = q_PHTD.shape[2], k_PHSD.shape[2] - q_PHTD.shape[2]
    if not ends or ends[-1] != new or prefix < 0 or list(ends) != sorted(set(ends)):
        raise ValueError(f"segment ends {list(ends)} do not cover {new} new positions after {prefix}")
    outs = []
    for start, end in zip([0, *ends], ends, strict=False):
        seen = prefix + end
        out = F.scaled_dot_product_attention(
            q_PHTD[:, :, start:end], k_PHSD[:, :, :seen], v_PHSD[:, :, :seen], scale=scale
        )
        outs.append(out)
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
