"""`nearest_code` in Triton: one program per tile of vectors, which reads the codebook tile by tile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import launch

BLOCK_N, BLOCK_V = 64, 64


@triton.jit
def _nearest_code_kernel(
    z_ptr,
    codebook_ptr,
    z_norm_ptr,
    code_norm_ptr,
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
    """Nearest codebook entry of BLOCK_N vectors [1], the first one on a tie:

        index = argmin_v (|z|^2 + |e_v|^2) - 2 z.e_v, rounded in that order

    References:
        [1] Neural Discrete Representation Learning, arXiv:1711.00937
    """
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_Z)
    mask_n, mask_c = n < N, c < Z
    z = tl.load(z_ptr + n[:, None] * stride_z + c[None, :], mask=mask_n[:, None] & mask_c[None, :], other=0.0)
    z_norm = tl.load(z_norm_ptr + n, mask=mask_n, other=0.0)
    min_distance = tl.full((BLOCK_N,), float("inf"), tl.float32)
    index = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        mask_v = v < V
        code_ptrs = codebook_ptr + v.to(tl.int64)[None, :] * stride_code + c[:, None]
        code = tl.load(code_ptrs, mask=mask_v[None, :] & mask_c[:, None], other=0.0)
        code_norm = tl.load(code_norm_ptr + v, mask=mask_v, other=float("inf"))  # beyond V: infinitely far
        distance = (z_norm[:, None] + code_norm[None, :]) - 2.0 * tl.dot(z, code, input_precision="ieee")
        tile_min, tile_index = tl.min(distance, 1, return_indices=True, return_indices_tie_break_left=True)
        closer = tile_min < min_distance  # not <=: an equal entry in a later tile is not the first
        index = tl.where(closer, start + tile_index, index)
        min_distance = tl.where(closer, tile_min, min_distance)
    tl.store(index_ptr + n, index.to(tl.int64), mask=mask_n)


def nearest_code(z_NZ: Tensor, codebook_VZ: Tensor, norm_V: Tensor) -> Tensor:
    """See `nearest_code.nearest_code`; norm_V: |e|^2 of every entry.

    Raises: ValueError when an input is not float32 or Z is not contiguous.
    """
    if z_NZ.ndim != 2 or z_NZ.dtype != torch.float32 or codebook_VZ.dtype != torch.float32:
        raise ValueError(
            f"triton needs two-dimensional float32 inputs: vectors are {z_NZ.dtype} {tuple(z_NZ.shape)}, "
            f"the codebook is {codebook_VZ.dtype}"
        )
    if z_NZ.stride(1) != 1 or codebook_VZ.stride(1) != 1:
        raise ValueError(f"triton needs contiguous channels: strides are {z_NZ.stride()} and {codebook_VZ.stride()}")
    index_N = torch.empty(len(z_NZ), dtype=torch.int64, device=z_NZ.device)
    if len(z_NZ) == 0:
        return index_N
    launch(
        _nearest_code_kernel,
        triton.cdiv(len(z_NZ), BLOCK_N),
        z_NZ,
        codebook_VZ,
        z_NZ.square().sum(1),  # by PyTorch, for the same rounding as the torch backend
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
