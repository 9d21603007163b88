"""`head_layer_norm` in Triton: one program per position of a sequence, for all heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import launch

HEADS = 16
"""Heads that a program normalizes at once; not measured."""


@triton.jit
def _head_layer_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    T,
    H,
    D,
    stride_xp,
    stride_xt,
    stride_xh,
    EPS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """All heads of one position [1]: (x - mean) / sqrt(variance + eps) * weight + bias over D channels.

    References:
        [1] Layer Normalization, arXiv:1607.06450
    """
    row = tl.program_id(0).to(tl.int64)  # int64: P * T * H * D can exceed 2**31
    p, t = row // T, row % T
    d = tl.arange(0, BLOCK_D)
    mask_d = d < D
    weight = tl.load(weight_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + d, mask=mask_d, other=0.0).to(tl.float32)
    for first in range(0, H, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        mask = (h < H)[:, None] & mask_d[None, :]
        x_ptrs = x_ptr + p * stride_xp + t * stride_xt + h.to(tl.int64)[:, None] * stride_xh + d[None, :]
        x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
        centered = tl.where(mask, x - (tl.sum(x, 1) / D)[:, None], 0.0)
        centered = tl.where(mask, centered - (tl.sum(centered, 1) / D)[:, None], 0.0)  # what rounding the mean left
        inverse = 1.0 / tl.sqrt(tl.sum(centered * centered, 1) / D + EPS)
        normed = centered * inverse[:, None] * weight[None, :] + bias[None, :]
        out_ptrs = out_ptr + (row * H + h)[:, None] * D + d[None, :]
        tl.store(out_ptrs, normed.to(out_ptr.dtype.element_ty), mask=mask)


def head_layer_norm(x_PTHD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `head_layer_norm.head_layer_norm`. Raises: ValueError when the channels of a head are not contiguous."""
    if x_PTHD.stride(3) != 1:
        raise ValueError(f"triton needs contiguous channels: the strides are {x_PTHD.stride()}")
    sequences, positions, heads, width = x_PTHD.shape
    out = torch.empty(x_PTHD.shape, dtype=dtype, device=x_PTHD.device)
    if out.numel():
        launch(
            _head_layer_norm_kernel,
            sequences * positions,
            x_PTHD,
            weight_D.contiguous(),
            bias_D.contiguous(),
            out,
            positions,
            heads,
            width,
            *x_PTHD.stride()[:3],
            EPS=eps,
            BLOCK_H=min(HEADS, triton.next_power_of_2(heads)),
            BLOCK_D=triton.next_power_of_2(width),
            num_warps=1,
            enable_fp_fusion=True,
        )
    return out
