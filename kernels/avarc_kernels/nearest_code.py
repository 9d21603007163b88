"""Nearest codebook entry. Shapes: N vectors, V entries, Z channels, R rows of one chunk."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from avarc_kernels.dispatch import select_backend

TILE_ROWS = 16  # a multiple of the rows of a tile in BLAS
CHUNK_ROWS = 1024  # 1024 x 4096 float32 distances take 16 MiB


def nearest_code(z_NZ: Tensor, codebook_VZ: Tensor, *, backend: str = "torch") -> Tensor:
    """Index of the codebook entry with the smallest squared Euclidean distance; the first one on a tie.

    Distances are |z|^2 + |e|^2 - 2 z.e in the published tokenizers' order of operations, because tokens must agree
    exactly with theirs.

    Args:
        z_NZ, codebook_VZ: float32 (the torch backend also takes float64), of one dtype; Z contiguous for "triton".
        backend: "torch" stores distances for `CHUNK_ROWS` vectors at a time, "triton" stores none. "triton" never
            uses TF32. Sums may be ordered differently: of two entries whose distances differ by less than float32
            rounding, either may be returned.
    Returns: index_N, int64.
    Raises: ValueError when channel counts or dtypes disagree, or when the backend cannot run or cannot compute the
        gradients that an input requires.
    Source: algorithm 1 of arXiv:2404.02905.
    """
    if z_NZ.shape[-1] != codebook_VZ.shape[-1]:
        raise ValueError(f"vectors of {z_NZ.shape[-1]} channels, codebook of {codebook_VZ.shape[-1]}")
    norm_V = codebook_VZ.square().sum(1)
    if select_backend(backend, ("torch", "triton"), z_NZ, codebook_VZ) == "triton":
        from avarc_kernels import nearest_code_triton

        return nearest_code_triton.nearest_code(z_NZ, codebook_VZ, norm_V)
    index_N = torch.empty(len(z_NZ), dtype=torch.int64, device=z_NZ.device)
    for start in range(0, len(z_NZ), CHUNK_ROWS):
        count = len(z_NZ[start : start + CHUNK_ROWS])
        # BLAS rounds the products of rows that do not fill one of its tiles differently: of a single row in MKL, of the
        # last one to three on AMD's processors.
        z_RZ = functional.pad(z_NZ[start : start + CHUNK_ROWS], (0, 0, 0, -count % TILE_ROWS))
        distance_RV = z_RZ.square().sum(1, keepdim=True) + norm_V
        distance_RV.addmm_(z_RZ, codebook_VZ.T, alpha=-2, beta=1)
        index_N[start : start + CHUNK_ROWS] = distance_RV.argmin(1)[:count]
    return index_N
