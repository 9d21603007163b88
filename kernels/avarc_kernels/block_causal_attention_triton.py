"""`block_causal_attention` in Triton: flash attention over the keys up to the end of each query's segment.

A tile of queries may span several short segments, so every query has its own number of visible keys. Tiles of keys that
no query of the tile sees are skipped; only tiles that some of them do not see in full are masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import dot_precision, launch

# HALF and FULL: within 5 % of the fastest of 12 and of 7 tiles on an H200, with heads of 64 channels and 576 or 680
# positions. WIDE was not timed.
HALF = {"BLOCK_T": 64, "BLOCK_S": 64, "num_warps": 4, "num_stages": 3}  # heads of up to 128 channels
FULL = {"BLOCK_T": 32, "BLOCK_S": 32, "num_warps": 4, "num_stages": 2}  # float32, up to 64
WIDE = {"BLOCK_T": 16, "BLOCK_S": 16, "num_warps": 4, "num_stages": 2}
LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    q, qk_scale, k_ptrs, v_ptrs, stride_ks, stride_vs, first, last, visible, mask_d, m_i, l_i, acc,
    MASKED: tl.constexpr, QK_NORM: tl.constexpr, NORM_EPS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Update the online softmax with the keys [first, last): maximum m_i, sum l_i and weighted sum of values acc."""
    for start in range(first, last, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        s_64 = s.to(tl.int64)
        mask = (s < last)[:, None] & mask_d[None, :] if MASKED else mask_d[None, :]
        k = tl.load(k_ptrs + s_64[:, None] * stride_ks, mask=mask, other=0.0)
        qk = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if QK_NORM:  # applied to q.k instead of k, which would have to be rounded to its dtype again
            k_32 = k.to(tl.float32)
            qk *= (1.0 / tl.maximum(tl.sqrt(tl.sum(k_32 * k_32, 1)), NORM_EPS))[None, :]
        if MASKED:
            qk = tl.where(s[None, :] < visible[:, None], qk, -float("inf"))
        m_new = tl.maximum(m_i, tl.max(qk, 1))
        alpha = tl.exp2((m_i - m_new) * qk_scale)  # subtract before scaling: a large common offset costs no digits
        p = tl.exp2((qk - m_new[:, None]) * qk_scale[:, None])
        l_i = l_i * alpha + tl.sum(p, 1)
        v = tl.load(v_ptrs + s_64[:, None] * stride_vs, mask=mask, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        m_i = m_new
    return m_i, l_i, acc


@triton.jit
def _block_causal_attention_kernel(
    q_ptr, k_ptr, v_ptr, gain_ptr, visible_ptr, out_ptr,
    scale, H, T, D, tiles, group,
    stride_qp, stride_qh, stride_qt, stride_kp, stride_kh, stride_ks, stride_vp, stride_vh, stride_vs,
    QK_NORM: tl.constexpr, NORM_EPS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attention of BLOCK_T queries of one head to the first visible_t keys of each query t [1]; `group` query heads
    read one head of keys and values:

        out_t = softmax over s < visible_t of (scale q_t.k_s), times v

    With QK_NORM, gain q_t / |q_t| and k_s / |k_s| take the place of q_t and k_s. `scale` includes log2(e), so the
    online softmax [2] works in base 2. With m_i the maximum of the unscaled products, its update per tile of keys is

        m_i' = max(m_i, max_s q_i.k_s)
        alpha_i = 2^(scale (m_i - m_i'))
        l_i' = alpha_i l_i + sum_s 2^(scale (q_i.k_s - m_i'))
        acc_i' = alpha_i acc_i + sum_s 2^(scale (q_i.k_s - m_i')) v_s

    and out_i = acc_i / l_i.

    References:
        [1] Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction, arXiv:2404.02905
        [2] FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning, arXiv:2307.08691
    """
    pid = tl.program_id(0)
    tile = tiles - 1 - pid % tiles  # longest first; tiles of one head run together and share k and v in L2
    p_64 = (pid // tiles // H).to(tl.int64)  # int64: P * H * S * D can exceed 2**31
    h_64 = (pid // tiles % H).to(tl.int64)
    t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    mask_t, mask_d = t < T, d < D
    q_ptrs = q_ptr + p_64 * stride_qp + h_64 * stride_qh + t.to(tl.int64)[:, None] * stride_qt + d[None, :]
    q = tl.load(q_ptrs, mask=mask_t[:, None] & mask_d[None, :], other=0.0)
    qk_scale = tl.zeros((BLOCK_T,), tl.float32) + scale
    if QK_NORM:
        q_32 = q.to(tl.float32)
        qk_scale *= tl.load(gain_ptr + h_64) / tl.maximum(tl.sqrt(tl.sum(q_32 * q_32, 1)), NORM_EPS)
    # `visible` increases with the position, so the tile's first and last queries bound it.
    last_t = tl.minimum(tile * BLOCK_T + BLOCK_T, T) - 1
    unmasked = tl.load(visible_ptr + tile * BLOCK_T) // BLOCK_S * BLOCK_S
    stop = tl.load(visible_ptr + last_t)
    visible = tl.load(visible_ptr + tl.minimum(t, last_t))
    k_ptrs = k_ptr + p_64 * stride_kp + h_64 // group * stride_kh + d[None, :]
    v_ptrs = v_ptr + p_64 * stride_vp + h_64 // group * stride_vh + d[None, :]
    m_i = tl.full((BLOCK_T,), -float("inf"), tl.float32)
    l_i = tl.zeros((BLOCK_T,), tl.float32)
    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    m_i, l_i, acc = _attend(
        q, qk_scale, k_ptrs, v_ptrs, stride_ks, stride_vs, 0, unmasked, visible, mask_d, m_i, l_i, acc,
        MASKED=False, QK_NORM=QK_NORM, NORM_EPS=NORM_EPS, PRECISION=PRECISION, BLOCK_S=BLOCK_S,
    )  # fmt: skip
    m_i, l_i, acc = _attend(
        q, qk_scale, k_ptrs, v_ptrs, stride_ks, stride_vs, unmasked, stop, visible, mask_d, m_i, l_i, acc,
        MASKED=True, QK_NORM=QK_NORM, NORM_EPS=NORM_EPS, PRECISION=PRECISION, BLOCK_S=BLOCK_S,
    )  # fmt: skip
    # Stored as (P, T, H, D): the linear after attention reads the heads of a position side by side.
    out_ptrs = out_ptr + ((p_64 * T + t.to(tl.int64)) * H + h_64)[:, None] * D + d[None, :]
    out = acc / l_i[:, None]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask_t[:, None] & mask_d[None, :])


def block_causal_attention(
    q_PHTD: Tensor,
    k_PHSD: Tensor,
    v_PHSD: Tensor,
    ends: Sequence[int],
    scale: float,
    gain_H: Tensor | None,
    norm_eps: float,
) -> Tensor:
    """See `block_causal_attention.block_causal_attention`. The result is a view of a contiguous (P, T, H, D).

    Keys and values may have fewer heads, which divide those of the queries (`causal_attention.causal_attention`).

    Raises: ValueError when D is not contiguous or exceeds 256.
    """
    sequences, heads, new, width = q_PHTD.shape
    if any(x.stride(3) != 1 for x in (q_PHTD, k_PHSD, v_PHSD)) or width > 256:
        raise ValueError(
            f"triton needs heads of at most 256 contiguous channels: width {width}, strides {q_PHTD.stride()}, "
            f"{k_PHSD.stride()}, {v_PHSD.stride()}"
        )
    out_PTHD = torch.empty(sequences, new, heads, width, dtype=q_PHTD.dtype, device=q_PHTD.device)
    narrow, config = (64, FULL) if q_PHTD.dtype == torch.float32 else (128, HALF)
    config = config if width <= narrow else WIDE
    tiles = triton.cdiv(new, config["BLOCK_T"])
    if out_PTHD.numel():
        launch(
            _block_causal_attention_kernel,
            tiles * sequences * heads,
            q_PHTD,
            k_PHSD,
            v_PHSD,
            q_PHTD if gain_H is None else gain_H.float().contiguous(),
            _visible_keys(tuple(ends), k_PHSD.shape[2] - new, q_PHTD.device),
            out_PTHD,
            scale * LOG2_E,
            heads,
            new,
            width,
            tiles,
            heads // k_PHSD.shape[1],
            *q_PHTD.stride()[:3],
            *k_PHSD.stride()[:3],
            *v_PHSD.stride()[:3],
            QK_NORM=gain_H is not None,
            NORM_EPS=norm_eps,
            PRECISION=dot_precision(q_PHTD.dtype),
            BLOCK_D=max(triton.next_power_of_2(width), 16),
            enable_fp_fusion=True,
            **config,
        )
    return out_PTHD.transpose(1, 2)


@lru_cache(maxsize=256)
def _visible_keys(ends: tuple[int, ...], prefix: int, device: torch.device) -> Tensor:
    """How many keys each new position sees, (T,) int32. Cached: every copy to the GPU would wait for it."""
    counts = [prefix + end for start, end in zip((0, *ends), ends, strict=False) for _ in range(end - start)]
    return torch.tensor(counts, dtype=torch.int32, device=device)
