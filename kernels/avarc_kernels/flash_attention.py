"""flash-attn's attention, a backend of `block_causal_attention` and `causal_attention`.

Shapes: P sequences, H query heads, G key/value heads (G divides H), T queries, S keys, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256


def flash_attention(q_PHTD: Tensor, k_PGSD: Tensor, v_PGSD: Tensor, scale: float, *, causal: bool) -> Tensor:
    """Attention of the last T of S positions, (P, H, T, D) in q's dtype; causal, or each of them to all S.

    Raises: ValueError for what flash-attn does not compute. That it is there is checked by `dispatch.select_backend`.
    Source: arXiv:2307.08691. Since version 2.1 the last query sees the last key, as here.
    """
    if q_PHTD.dtype not in DTYPES:
        raise ValueError(f"backend 'flash' computes in bfloat16 and float16, and the queries are {q_PHTD.dtype}")
    if q_PHTD.shape[-1] > WIDEST_HEAD:
        raise ValueError(f"backend 'flash' has heads of at most {WIDEST_HEAD} channels, not {q_PHTD.shape[-1]}")
    if not len(q_PHTD):
        return torch.empty_like(q_PHTD)
    from flash_attn import flash_attn_func

    q_PTHD, k_PSGD, v_PSGD = (x.transpose(1, 2) for x in (q_PHTD, k_PGSD, v_PGSD))
    out_PTHD: Tensor = flash_attn_func(q_PTHD, k_PSGD, v_PSGD, softmax_scale=scale, causal=causal)
    return out_PTHD.transpose(1, 2)
