"""Block-causal attention without a mask.

Shapes: P sequences, H heads, T new positions, S positions of prefix and new ones, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_kernels.cpu_attention import attention_by_products, faster_by_products
from avarc_kernels.dispatch import select_backend
from avarc_kernels.flash_attention import flash_attention

NORM_EPS = 1e-12  # lower bound of the norm that a query or key is divided by


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
    """Attention in which every position sees its own segment and everything before it, and nothing later.

    Equals attention under a block-causal mask, but computes nothing for masked positions.

    Args:
        q_PHTD: queries of the T new positions: float32, bfloat16 or float16.
        k_PHSD, v_PHSD: keys and values of the prefix followed by the new positions, S >= T, in q's dtype.
            Any strides; "triton" and "flash" need D contiguous.
        ends: end of each new segment, counted in new positions, increasing; the last one is T.
        scale: multiplies q @ k.T before the softmax; positive.
        gain_H: if given, QK-norm: queries and keys are first divided by their L2 norms, and queries multiplied by
            their head's gain, so the KV cache can hold keys as the linear made them. float32, positive.
        backend: "torch" calls PyTorch's scaled_dot_product_attention, without a mask, once per segment, or
            `attention_by_products` where that is faster; "flash" does the same with flash-attn (half precision, CUDA,
            D <= 256); "triton" is one kernel for all segments, QK-norm included.
    Returns: (P, H, T, D) in q's dtype; the error against float64 is at most twice that of masked attention in q's
        dtype.
    Raises: ValueError when shapes or dtypes disagree, when the segment ends do not cover the new positions, or when
        the backend cannot run or cannot compute the gradients that an input requires.
    Source: the mask of section 3 in arXiv:2404.02905; FlashAttention-2, arXiv:2307.08691.
    """
    _check(q_PHTD, k_PHSD, v_PHSD, ends, scale, gain_H)
    backend = select_backend(backend, ("torch", "flash", "triton"), q_PHTD, k_PHSD, v_PHSD, gain_H)
    if backend == "triton":
        from avarc_kernels import block_causal_attention_triton

        return block_causal_attention_triton.block_causal_attention(
            q_PHTD, k_PHSD, v_PHSD, ends, scale, gain_H, NORM_EPS
        )
    if gain_H is not None:
        q_PHTD, k_PHSD = qk_norm(q_PHTD, gain_H), qk_norm(k_PHSD)
    attend = _flash if backend == "flash" else _sdpa
    prefix = k_PHSD.shape[2] - q_PHTD.shape[2]
    queries = q_PHTD.split([end - start for start, end in zip([0, *ends], ends, strict=False)], dim=2)
    keys, values = (_prefixes(x, [prefix + end for end in ends]) for x in (k_PHSD, v_PHSD))
    outs = [attend(q, k, v, scale) for q, k, v in zip(queries, keys, values, strict=True)]
    return torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]


def _prefixes(x_PHSD: Tensor, ends: Sequence[int]) -> tuple[Tensor, ...]:
    """The first positions up to each end, as views; the last end is S."""
    if len(ends) > 1 and torch.is_grad_enabled() and x_PHSD.requires_grad:
        prefixes = cast("Callable[[Tensor, Sequence[int]], tuple[Tensor, ...]]", _Prefixes.apply)
        return prefixes(x_PHSD, ends)
    return tuple(x_PHSD[:, :, :end] for end in ends)


class _Prefixes(torch.autograd.Function):
    """The same with a gradient that adds up in one tensor; that of slices makes one of x's size, mostly zeros, each."""

    @staticmethod
    def forward(ctx: Any, x_PHSD: Tensor, ends: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.ends = ends
        return tuple(x_PHSD[:, :, :end] for end in ends)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        sum_PHSD = grads[-1].clone()
        for end, grad in zip(ctx.ends[-2::-1], grads[-2::-1], strict=True):  # longest first, as autograd would
            sum_PHSD[:, :, :end] += grad
        return sum_PHSD, None


def qk_norm(x_PHSD: Tensor, gain_H: Tensor | None = None) -> Tensor:
    """Vectors divided by their L2 norms (at least `NORM_EPS`) and multiplied by their head's gain; in x's dtype."""
    x = x_PHSD if x_PHSD.dtype == torch.float64 else x_PHSD.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(NORM_EPS)
    if gain_H is not None:
        norm = norm / gain_H[:, None, None]  # here instead of on the vectors: D times less work
    unit: Tensor = x / norm
    return unit.to(x_PHSD.dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, ends: Sequence[int], scale: float, gain_H: Tensor | None) -> None:
    new, prefix = q.shape[2], k.shape[2] - q.shape[2]
    if not ends or ends[-1] != new or prefix < 0 or list(ends) != sorted({*ends}) or ends[0] <= 0:
        raise ValueError(f"segment ends {list(ends)} do not cover {new} new positions after a prefix of {prefix}")
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"queries {tuple(q.shape)}, keys {tuple(k.shape)}, values {tuple(v.shape)}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"queries are {q.dtype}, keys {k.dtype}, values {v.dtype}")
    if scale <= 0:
        raise ValueError(f"scale {scale} is not positive")
    if gain_H is not None and gain_H.shape != q.shape[1:2]:
        raise ValueError(f"gains of shape {tuple(gain_H.shape)} for {q.shape[1]} heads")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    if faster_by_products(q, k):
        return attention_by_products(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return flash_attention(q, k, v, scale, causal=False)
