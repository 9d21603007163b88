"""Attention in both directions.

Shapes: P sequences, T positions that ask, U positions that are asked, C width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from avarc_cli.layers.precision import Precision


def attend(
    q_PTC: Tensor, k_PUC: Tensor, v_PUC: Tensor, heads: int, precision: Precision, dropout: float = 0.0
) -> Tensor:
    """Attention to all positions without a mask, (P, T, C), in the dtype of activations.

    Args:
        dropout: fraction of the weights of attention that are zeroed.
    """
    q, k, v = (x.to(precision.attention).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_PTC, k_PUC, v_PUC))
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
    return out.to(precision.activations)
