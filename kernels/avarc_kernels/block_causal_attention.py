"""Block-causal attention without a mask.

Shapes: P sequences, H heads, T new positions, S prefix and new ones, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_kernels.dispatch import chosen

NORM_EPS = 1e-12  # a shorter query or key is divided by this


def block_causal_attention(
    q_PHTD: Tensor,
    k_PHSD: Tensor,
    v_PHSD: Tensor,
    ends: Sequence[int],
    *,
    scale: float,
    gain_H: Tensor | None = None,
    backend: str = "torch",
) -> Tensor:
    """Attention in which every position sees its own segment and all that came before, nothing later.

    Equals masked attention with a block-causal mask, but nothing is computed for what is masked.

    Args:
        q_PHTD: queries of the T new positions: float32, bfloat16 or float16.
        k_PHSD, v_PHSD: keys and values of the prefix followed by the new positions, S >= T, in q's dtype.
            Any strides; "triton" and "flash" want D contiguous.
        ends: end of each new segment, counted in new positions, increasing; the last is T.
        scale: multiplies q @ k.T before the softmax; positive.
        gain_H: when given, queries and keys are divided by their lengths first and queries multiplied by their
            head's gain (QK-norm); so a prefix keeps its keys as the linear made them. float32, positive.
        backend: "torch" is one unmasked call of PyTorch's scaled_dot_product_attention a segment, "flash" one of
            flash-attn's (half precision, CUDA), "triton" one kernel for all segments with the QK-norm inside.
    Returns: (P, H, T, D), in q's dtype; at most twice as far from float64 as masked attention in q's dtype is.
    Raises: ValueError when shapes or dtypes disagree, when the segment ends do not cover the new positions, or the
        backend cannot run.
    Source: the mask in arXiv:2404.02905, section 3; flash attention, arXiv:2307.08691.
    """
    _check(q_PHTD, k_PHSD, v_PHSD, ends, scale, gain_H)
    if chosen(backend, ("torch", "flash", "triton"), q_PHTD) == "triton":
        from avarc_kernels import block_causal_attention_triton

        return block_causal_attention_triton.block_causal_attention(q_PHTD, k_PHSD, v_PHSD, ends, scale, gain_H)
    if gain_H is not None:
        q_PHTD, k_PHSD = unit_length(q_PHTD, gain_H), unit_length(k_PHSD)
    attend = _flash if backend == "flash" else _sdpa
    prefix = k_PHSD.shape[2] - q_PHTD.shape[2]
    outs = [
        attend(q_PHTD[:, :, start:end], k_PHSD[:, :, : prefix + end], v_PHSD[:, :, : prefix + end], scale)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]


def unit_length(x_PHSD: Tensor, gain_H: Tensor | None = None) -> Tensor:
    """Vectors divided by their length, at least 1e-12, and multiplied by their head's gain; in x's dtype."""
    x = x_PHSD if x_PHSD.dtype == torch.float64 else x_PHSD.float()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(NORM_EPS)
    if gain_H is not None:
        length = length / gain_H[:, None, None]  # here rather than on the vectors: D times less
    unit: Tensor = x / length
    return unit.to(x_PHSD.dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, ends: Sequence[int], scale: float, gain_H: Tensor | None) -> None:
    new, prefix = q.shape[2], k.shape[2] - q.shape[2]
    if not ends or ends[-1] != new or prefix < 0 or list(ends) != sorted({*ends}) or ends[0] <= 0:
        raise ValueError(f"segment ends {list(ends)} do not cover {new} new positions after {prefix}")
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"queries {tuple(q.shape)}, keys {tuple(k.shape)}, values {tuple(v.shape)}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"queries are {q.dtype}, keys {k.dtype}, values {v.dtype}")
    if scale <= 0:
        raise ValueError(f"a scale of {scale}, which is not positive")
    if gain_H is not None and gain_H.shape != q.shape[1:2]:
        raise ValueError(f"{tuple(gain_H.shape)} gains for {q.shape[1]} heads")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    try:
        from flash_attn import flash_attn_func
    except ImportError as e:
        raise ValueError(f"backend 'flash' cannot run: {e}") from e
    out: Tensor = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale=scale)
    return out.transpose(1, 2)
