"""Attention in both directions.

Shapes: P sequences, T positions that ask, U positions that are asked, C width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from avarc_cli.layers.dropout import Dropout, attention
from avarc_cli.layers.precision import Precision


def attend(
    q_PTC: Tensor, k_PUC: Tensor, v_PUC: Tensor, heads: int, precision: Precision, drop: Dropout | None = None
) -> Tensor:
    """Attention to all positions without a mask, (P, T, C), in the dtype of activations.

    Args:
        drop: dropout of the weights of attention.
    """
    q, k, v = (x.to(precision.attention).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_PTC, k_PUC, v_PUC))
    out = attention(q, k, v, drop) if drop and drop.drops else F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2).to(precision.activations)
