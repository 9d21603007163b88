"""Nearest codebook entry. Shapes: N vectors, V entries, Z channels."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_IN_FLIGHT = 1024  # 1024 x 4096 float32 distances are 16 MiB


def nearest_code(z_NZ: Tensor, codebook_VZ: Tensor) -> Tensor:
    """Index of the codebook entry at the least squared Euclidean distance; the first one on a tie.

    Distances are |z|^2 + |e|^2 - 2 z.e in the order of operations of the published tokenizers,
    because tokens must agree exactly with theirs; at most `ROWS_IN_FLIGHT` rows of them exist at a time.

    Returns: index_N, int64.
    Raises: ValueError when the channel counts disagree.
    """
    if z_NZ.shape[-1] != codebook_VZ.shape[-1]:
        raise ValueError(f"vectors of {z_NZ.shape[-1]} channels against a codebook of {codebook_VZ.shape[-1]}")
    norm_V = codebook_VZ.square().sum(1)
    index_N = torch.empty(len(z_NZ), dtype=torch.int64, device=z_NZ.device)
    for start in range(0, len(z_NZ), ROWS_IN_FLIGHT):
        z_RZ = z_NZ[start : start + ROWS_IN_FLIGHT]
        distance_RV = z_RZ.square().sum(1, keepdim=True) + norm_V
        distance_RV.addmm_(z_RZ, codebook_VZ.T, alpha=-2, beta=1)
        index_N[start : start + ROWS_IN_FLIGHT] = distance_RV.argmin(1)
    return index_N
