"""`rotary` in Triton: one program per position of a sequence, for all heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import launch

HEADS = 8
"""Heads that a program turns at once; not measured."""


@triton.jit
def _rotary_kernel(
    x_ptr,
    table_ptr,
    out_ptr,
    R,  # rows of the table: T, or of all sequences
    T,
    H,
    D,
    stride_xp,
    stride_xt,
    stride_xh,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """All heads of one position [1]: (a, b) -> (a cos - b sin, b cos + a sin) for adjacent channels a, b.

    Channels are read and written side by side, and only then taken apart: 16 bytes at once instead of one number.

    References:
        [1] RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864
    """
    row = tl.program_id(0).to(tl.int64)  # int64: P * T * H * D can exceed 2**31
    p, t = row // T, row % T
    d = tl.arange(0, BLOCK_D)
    mask_d = d < D
    angles = tl.load(table_ptr + row % R * D + d, mask=mask_d, other=0.0)
    cos, sin = tl.split(tl.reshape(angles, (1, BLOCK_D // 2, 2)))
    for first in range(0, H, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        mask = (h < H)[:, None] & mask_d[None, :]
        x_ptrs = x_ptr + p * stride_xp + t * stride_xt + h.to(tl.int64)[:, None] * stride_xh + d[None, :]
        x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(x, (BLOCK_H, BLOCK_D // 2, 2)))
        turned = tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (BLOCK_H, BLOCK_D))
        out_ptrs = out_ptr + (row * H + h)[:, None] * D + d[None, :]
        tl.store(out_ptrs, turned.to(out_ptr.dtype.element_ty), mask=mask)


def rotary(x_PTHD: Tensor, table_TJ2: Tensor, dtype: torch.dtype) -> Tensor:
    """See `rotary.rotary`. Raises: ValueError when the channels of a head are not contiguous."""
    if x_PTHD.stride(3) != 1:
        raise ValueError(f"triton needs contiguous channels: the strides are {x_PTHD.stride()}")
    sequences, positions, heads, width = x_PTHD.shape
    out = torch.empty(x_PTHD.shape, dtype=dtype, device=x_PTHD.device)
    if out.numel():
        launch(
            _rotary_kernel,
            sequences * positions,
            x_PTHD,
            table_TJ2.float().contiguous(),
            out,
            table_TJ2.numel() // width,
            positions,
            heads,
            width,
            *x_PTHD.stride()[:3],
            BLOCK_H=HEADS,
            BLOCK_D=triton.next_power_of_2(width),
            num_warps=1,
            enable_fp_fusion=True,
        )
    return out
