"""Causal attention after a prefix, with grouped queries.

Shapes: P sequences, H query heads, G key/value heads (G divides H), T new positions, S positions of prefix and new
ones, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_kernels.dispatch import select_backend
from avarc_kernels.flash_attention import flash_attention


def causal_attention(q_PHTD: Tensor, k_PGSD: Tensor, v_PGSD: Tensor, *, scale: float, backend: str = "torch") -> Tensor:
    """Attention in which every new position sees the prefix, the new positions before it, and itself.

    Args:
        q_PHTD: queries of the T new positions: float32, bfloat16 or float16.
        k_PGSD, v_PGSD: keys and values of the prefix followed by the new positions, S >= T, in q's dtype. Query head h
            reads key/value head h // (H / G). Any strides; "triton" and "flash" need D contiguous.
        scale: multiplies q @ k.T before the softmax; positive.
        backend: "torch" calls PyTorch's scaled_dot_product_attention; "flash" (flash-attn: half precision, CUDA,
            D <= 256) and "triton" skip the keys that no query sees, and do not repeat those of groups.
    Returns: (P, H, T, D) in q's dtype; the error against float64 is at most twice that of masked attention in q's
        dtype.
    Raises: ValueError when shapes or dtypes disagree, or when the backend cannot run or cannot compute the gradients
        that an input requires.
    Source: FlashAttention-2, arXiv:2307.08691; grouped queries, arXiv:2305.13245.
    """
    heads, new, groups, total = q_PHTD.shape[1], q_PHTD.shape[2], k_PGSD.shape[1], k_PGSD.shape[2]
    fits = k_PGSD.shape == v_PGSD.shape and q_PHTD.shape[::3] == k_PGSD.shape[::3]
    if not fits or heads % groups or not 0 < new <= total:
        raise ValueError(
            f"queries {tuple(q_PHTD.shape)}, keys {tuple(k_PGSD.shape)}, values {tuple(v_PGSD.shape)}: "
            "expected as many sequences and channels, a multiple of the key heads, and at least as many keys"
        )
    if not q_PHTD.dtype == k_PGSD.dtype == v_PGSD.dtype:
        raise ValueError(f"queries are {q_PHTD.dtype}, keys {k_PGSD.dtype}, values {v_PGSD.dtype}")
    if scale <= 0:
        raise ValueError(f"scale {scale} is not positive")
    backend = select_backend(backend, ("torch", "flash", "triton"), q_PHTD, k_PGSD, v_PGSD)
    if backend == "flash":
        return flash_attention(q_PHTD, k_PGSD, v_PGSD, scale, causal=True)
    if backend == "triton":
        from avarc_kernels import block_causal_attention_triton

        ends = tuple(range(1, new + 1))
        return block_causal_attention_triton.block_causal_attention(q_PHTD, k_PGSD, v_PGSD, ends, scale, None, 0.0)
    if groups < heads:
        k_PGSD, v_PGSD = (x.repeat_interleave(heads // groups, dim=1) for x in (k_PGSD, v_PGSD))
    mask_TS = None if new in (1, total) else _visible(new, total, q_PHTD.device)
    causal = mask_TS is None and new > 1
    return F.scaled_dot_product_attention(q_PHTD, k_PGSD, v_PGSD, attn_mask=mask_TS, is_causal=causal, scale=scale)


def _visible(new: int, total: int, device: torch.device) -> Tensor:
    """Which keys each new position sees, (T, S) bool."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
