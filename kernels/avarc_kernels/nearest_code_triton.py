"""`nearest_code` in Triton: distances of a few vectors to a tile of the codebook at a time, never kept."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N, BLOCK_V = 64, 64


@triton.jit
def _nearest_code_kernel(
    z_ptr,
    codebook_ptr,
    z_norm_ptr,
    norm_ptr,
    index_ptr,
    N,
    V,
    Z,
    stride_z,
    stride_code,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_Z: tl.constexpr,
):
    """argmin_v (|z|^2 + |e_v|^2) - 2 z.e_v, rounded in that order; the first of equal ones."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_Z)
    row_ok, channel_ok = n < N, c < Z
    z = tl.load(z_ptr + n[:, None] * stride_z + c[None, :], mask=row_ok[:, None] & channel_ok[None, :], other=0.0)
    z_norm = tl.load(z_norm_ptr + n, mask=row_ok, other=0.0)
    least = tl.full((BLOCK_N,), float("inf"), tl.float32)
    index = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        column_ok = v < V
        code_ptrs = codebook_ptr + v.to(tl.int64)[None, :] * stride_code + c[:, None]
        code = tl.load(code_ptrs, mask=column_ok[None, :] & channel_ok[:, None], other=0.0)
        norm = tl.load(norm_ptr + v, mask=column_ok, other=float("inf"))  # past the codebook: infinitely far
        distance = (z_norm[:, None] + norm[None, :]) - 2.0 * tl.dot(z, code, input_precision="ieee")
        nearest, at = tl.min(distance, 1, return_indices=True, return_indices_tie_break_left=True)
        closer = nearest < least  # not <=: an equal one further on is not the first
        index = tl.where(closer, start + at, index)
        least = tl.where(closer, nearest, least)
    tl.store(index_ptr + n, index.to(tl.int64), mask=row_ok)


def nearest_code(z_NZ: Tensor, codebook_VZ: Tensor, norm_V: Tensor) -> Tensor:
    """See `quantize.nearest_code`. Raises: ValueError when not float32 or Z is not contiguous."""
    if z_NZ.ndim != 2 or z_NZ.dtype != torch.float32 or codebook_VZ.dtype != torch.float32:
        raise ValueError(f"triton wants float32 vectors in two dimensions, not {z_NZ.dtype} {tuple(z_NZ.shape)}")
    if z_NZ.stride(1) != 1 or codebook_VZ.stride(1) != 1:
        raise ValueError(f"triton wants contiguous channels: strides are {z_NZ.stride()} and {codebook_VZ.stride()}")
    index_N = torch.empty(len(z_NZ), dtype=torch.int64, device=z_NZ.device)
    if len(z_NZ) == 0:
        return index_N
    _nearest_code_kernel[(triton.cdiv(len(z_NZ), BLOCK_N),)](
        z_NZ,
        codebook_VZ,
        z_NZ.square().sum(1),  # by PyTorch, as in the definition: the same rounding
        norm_V,
        index_N,
        len(z_NZ),
        len(codebook_VZ),
        z_NZ.shape[1],
        z_NZ.stride(0),
        codebook_VZ.stride(0),
        BLOCK_N=BLOCK_N,
        BLOCK_V=BLOCK_V,
        BLOCK_Z=max(triton.next_power_of_2(z_NZ.shape[1]), 16),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return index_N
