"""Rows quantized to 8 bits with one scale per row. Shapes: M rows, C width."""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_kernels.dispatch import select_backend

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # the code that a row's largest magnitude maps to
SMALLEST = 1e-30  # lower bound of a row's largest magnitude: rows of zeros stay zeros


def quantize_rows(x_MC: Tensor, dtype: torch.dtype, *, backend: str = "torch") -> tuple[Tensor, Tensor]:
    """x as q * scale with one scale per row, chosen so that the row's largest magnitude becomes the largest code.

    Args:
        x_MC: float32, bfloat16 or float16; contiguous for "triton".
        dtype: torch.int8 (codes -127 to 127, halves round to even) or torch.float8_e4m3fn.
        backend: "torch", or "triton": one read and one write. Both give the same bits.
    Returns: q_MC in `dtype`, and scale_M, float32. |x - q * scale| is at most scale / 2 for int8, and the larger of
        |x| / 16 and scale / 1024 for float8.
    Raises: ValueError for another dtype or shape, or when the backend cannot run or cannot compute the gradients that
        x requires.
    """
    if dtype not in LARGEST or x_MC.ndim != 2 or x_MC.shape[1] == 0:
        raise ValueError(f"cannot quantize a tensor of shape {tuple(x_MC.shape)} to {dtype}")
    if select_backend(backend, ("torch", "triton"), x_MC) == "triton":
        from avarc_kernels import quantize_rows_triton

        return quantize_rows_triton.quantize_rows(x_MC, dtype, LARGEST[dtype], SMALLEST)
    x = x_MC.float()
    largest_M = x.abs().amax(1).clamp_min(SMALLEST)
    scale_M = largest_M / torch.full_like(largest_M, LARGEST[dtype])  # by a number, CUDA would multiply by its inverse
    scaled = x / scale_M[:, None]  # at most one rounding error above the largest code, so it rounds back to it
    return (scaled.round_() if dtype == torch.int8 else scaled).to(dtype), scale_M
