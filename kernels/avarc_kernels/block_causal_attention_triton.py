"""`block_causal_attention` in Triton: flash attention whose row of queries ends where its segment does.

A tile of queries may hold several short segments: every query has a limit, the keys it may see. Tiles of keys past the
largest limit are never computed; only those past the smallest are masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.block_causal_attention import NORM_EPS
from avarc_kernels.dispatch import dot_precision

# By what ptxas says for sm_90: the next larger ones spill registers (float32), or nobody has timed them.
HALF = {"BLOCK_T": 128, "BLOCK_S": 64, "num_warps": 8, "num_stages": 3}  # heads of up to 128 channels
FULL = {"BLOCK_T": 32, "BLOCK_S": 32, "num_warps": 8, "num_stages": 2}  # float32, up to 64
WIDE = {"BLOCK_T": 16, "BLOCK_S": 16, "num_warps": 4, "num_stages": 2}
LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    q, factor, k_ptrs, v_ptrs, stride_ks, stride_vs, first, last, limit, channel_ok, top, total, out,
    MASKED: tl.constexpr, QK_NORM: tl.constexpr, NORM_EPS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Take the keys [first, last) into the running softmax: largest product, sum of exponentials, sum of values."""
    for start in range(first, last, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        s_64 = s.to(tl.int64)
        ok = (s < last)[:, None] & channel_ok[None, :] if MASKED else channel_ok[None, :]
        k = tl.load(k_ptrs + s_64[:, None] * stride_ks, mask=ok, other=0.0)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if QK_NORM:  # of the products rather than of k: nothing is rounded to k's dtype once more
            k_32 = k.to(tl.float32)
            products *= (1.0 / tl.maximum(tl.sqrt(tl.sum(k_32 * k_32, 1)), NORM_EPS))[None, :]
        if MASKED:
            products = tl.where(s[None, :] < limit[:, None], products, -float("inf"))
        new_top = tl.maximum(top, tl.max(products, 1))
        old = tl.exp2((top - new_top) * factor)  # the difference first: a large common offset costs no digits
        p = tl.exp2((products - new_top[:, None]) * factor[:, None])
        total = total * old + tl.sum(p, 1)
        v = tl.load(v_ptrs + s_64[:, None] * stride_vs, mask=ok, other=0.0)
        out = tl.dot(p.to(v.dtype), v, out * old[:, None], input_precision=PRECISION)
        top = new_top
    return top, total, out


@triton.jit
def _block_causal_attention_kernel(
    q_ptr, k_ptr, v_ptr, gain_ptr, limit_ptr, out_ptr,
    scale, H, T, D, tiles,
    stride_qp, stride_qh, stride_qt, stride_kp, stride_kh, stride_ks, stride_vp, stride_vh, stride_vs,
    QK_NORM: tl.constexpr, NORM_EPS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """softmax(scale * q @ k.T over the first `limit` keys) @ v, for BLOCK_T queries of one head."""
    pid = tl.program_id(0)
    tile = tiles - 1 - pid % tiles  # the longest first; tiles of one head run together and share k and v in L2
    p_64 = (pid // tiles // H).to(tl.int64)  # int64: P * H * S * D passes 2**31
    h_64 = (pid // tiles % H).to(tl.int64)
    t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    row_ok, channel_ok = t < T, d < D
    q_ptrs = q_ptr + p_64 * stride_qp + h_64 * stride_qh + t.to(tl.int64)[:, None] * stride_qt + d[None, :]
    q = tl.load(q_ptrs, mask=row_ok[:, None] & channel_ok[None, :], other=0.0)
    factor = tl.zeros((BLOCK_T,), tl.float32) + scale
    if QK_NORM:
        q_32 = q.to(tl.float32)
        factor *= tl.load(gain_ptr + h_64) / tl.maximum(tl.sqrt(tl.sum(q_32 * q_32, 1)), NORM_EPS)
    # Limits grow with the position: those of a tile's first and last query bound them all.
    last_t = tl.minimum(tile * BLOCK_T + BLOCK_T, T) - 1
    unmasked = tl.load(limit_ptr + tile * BLOCK_T) // BLOCK_S * BLOCK_S
    stop = tl.load(limit_ptr + last_t)
    limit = tl.load(limit_ptr + tl.minimum(t, last_t))
    k_ptrs = k_ptr + p_64 * stride_kp + h_64 * stride_kh + d[None, :]
    v_ptrs = v_ptr + p_64 * stride_vp + h_64 * stride_vh + d[None, :]
    top = tl.full((BLOCK_T,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    out = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    top, total, out = _attend(
        q, factor, k_ptrs, v_ptrs, stride_ks, stride_vs, 0, unmasked, limit, channel_ok, top, total, out,
        MASKED=False, QK_NORM=QK_NORM, NORM_EPS=NORM_EPS, PRECISION=PRECISION, BLOCK_S=BLOCK_S,
    )  # fmt: skip
    top, total, out = _attend(
        q, factor, k_ptrs, v_ptrs, stride_ks, stride_vs, unmasked, stop, limit, channel_ok, top, total, out,
        MASKED=True, QK_NORM=QK_NORM, NORM_EPS=NORM_EPS, PRECISION=PRECISION, BLOCK_S=BLOCK_S,
    )  # fmt: skip
    # Written as (P, T, H, D): the linear after attention wants the heads of a position side by side.
    out_ptrs = out_ptr + ((p_64 * T + t.to(tl.int64)) * H + h_64)[:, None] * D + d[None, :]
    out = out / total[:, None]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=row_ok[:, None] & channel_ok[None, :])


@lru_cache(maxsize=256)
def _limits(ends: tuple[int, ...], prefix: int, device: torch.device) -> Tensor:
    """How many keys each new position sees, (T,) int32. Kept: building it would wait for the GPU in every block."""
    counts = [prefix + end for start, end in zip((0, *ends), ends, strict=False) for _ in range(end - start)]
    return torch.tensor(counts, dtype=torch.int32, device=device)


def block_causal_attention(
    q_PHTD: Tensor, k_PHSD: Tensor, v_PHSD: Tensor, ends: Sequence[int], scale: float, gain_H: Tensor | None
) -> Tensor:
    """See `attention.block_causal_attention`. The result is a view of a contiguous (P, T, H, D).

    Raises: ValueError when D is not contiguous, or wider than 256.
    """
    pairs, heads, new, width = q_PHTD.shape
    if any(x.stride(3) != 1 for x in (q_PHTD, k_PHSD, v_PHSD)) or width > 256:
        raise ValueError(f"triton wants heads of at most 256 contiguous channels: width {width}, {q_PHTD.stride()}")
    out_PTHD = torch.empty(pairs, new, heads, width, dtype=q_PHTD.dtype, device=q_PHTD.device)
    narrow, config = (64, FULL) if q_PHTD.dtype == torch.float32 else (128, HALF)
    config = config if width <= narrow else WIDE
    tiles = triton.cdiv(new, config["BLOCK_T"])
    if out_PTHD.numel():
        _block_causal_attention_kernel[(tiles * pairs * heads,)](
            q_PHTD,
            k_PHSD,
            v_PHSD,
            q_PHTD if gain_H is None else gain_H.float().contiguous(),
            _limits(tuple(ends), k_PHSD.shape[2] - new, q_PHTD.device),
            out_PTHD,
            scale * LOG2_E,
            heads,
            new,
            width,
            tiles,
            *q_PHTD.stride()[:3],
            *k_PHSD.stride()[:3],
            *v_PHSD.stride()[:3],
            QK_NORM=gain_H is not None,
            NORM_EPS=NORM_EPS,
            PRECISION=dot_precision(q_PHTD.dtype),
            BLOCK_D=max(triton.next_power_of_2(width), 16),
            enable_fp_fusion=True,
            **config,
        )
    return out_PTHD.transpose(1, 2)
