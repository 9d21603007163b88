"""Nearest codebook entry. Shapes: N vectors, V entries, Z channels."""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_kernels.dispatch import chosen

ROWS_IN_FLIGHT = 1024  # 1024 x 4096 float32 distances are 16 MiB


def nearest_code(z_NZ: Tensor, codebook_VZ: Tensor, *, backend: str = "torch") -> Tensor:
    """Index of the codebook entry at the least squared Euclidean distance; the first one on a tie.

    Distances are |z|^2 + |e|^2 - 2 z.e in the order of operations of the published tokenizers,
    because tokens must agree exactly with theirs.

    Args:
        z_NZ, codebook_VZ: float32 (the torch backend takes float64 too), of one dtype; Z contiguous for "triton".
        backend: "torch" holds at most `ROWS_IN_FLIGHT` rows of distances at a time, "triton" none. Products are
            float32, never TF32, in "triton"; both add in their own order, so that of two entries whose distances
            differ by less than float32 rounding either may be taken.
    Returns: index_N, int64.
    Raises: ValueError when channel counts or dtypes disagree, or the backend cannot run.
    Source: arXiv:2404.02905, algorithm 1.
    """
    if z_NZ.shape[-1] != codebook_VZ.shape[-1]:
        raise ValueError(f"vectors of {z_NZ.shape[-1]} channels against a codebook of {codebook_VZ.shape[-1]}")
    norm_V = codebook_VZ.square().sum(1)
    if chosen(backend, ("torch", "triton"), z_NZ) == "triton":
        from avarc_kernels import nearest_code_triton

        return nearest_code_triton.nearest_code(z_NZ, codebook_VZ, norm_V)
    index_N = torch.empty(len(z_NZ), dtype=torch.int64, device=z_NZ.device)
    for start in range(0, len(z_NZ), ROWS_IN_FLIGHT):
        z_RZ = z_NZ[start : start + ROWS_IN_FLIGHT]
        distance_RV = z_RZ.square().sum(1, keepdim=True) + norm_V
        distance_RV.addmm_(z_RZ, codebook_VZ.T, alpha=-2, beta=1)
        index_N[start : start + ROWS_IN_FLIGHT] = distance_RV.argmin(1)
    return index_N
