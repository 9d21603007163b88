"""Rows of activations in 8 bits, each with its own scale. Shapes: M rows, C width."""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_kernels.dispatch import chosen

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # magnitude of a row's largest entry, once quantised
SMALLEST = 1e-30  # a row of zeros is divided by this


def quantize_rows(x_MC: Tensor, dtype: torch.dtype, *, backend: str = "torch") -> tuple[Tensor, Tensor]:
    """x as q * scale with one scale a row: the row's largest magnitude becomes the largest of `dtype`.

    Args:
        x_MC: float32, bfloat16 or float16; contiguous for "triton".
        dtype: torch.int8 (codes -127 to 127, halves to even) or torch.float8_e4m3fn.
        backend: "torch", or "triton": one read and one write. Both give the same bits.
    Returns: q_MC in `dtype`, and scale_M, float32. |x - q * scale| <= scale / 2 for int8; 1/16 of |x|, or scale / 1024
        where that is more, for float8.
    Raises: ValueError for another dtype or shape, or when the backend cannot run.
    """
    if dtype not in LARGEST or x_MC.ndim != 2 or x_MC.shape[1] == 0:
        raise ValueError(f"no rows of {dtype} from a tensor of shape {tuple(x_MC.shape)}")
    if chosen(backend, ("torch", "triton"), x_MC) == "triton":
        from avarc_kernels import quantize_rows_triton

        return quantize_rows_triton.quantize_rows(x_MC, dtype)
    x = x_MC.float()
    scale_M = x.abs().amax(1).clamp_min(SMALLEST) / LARGEST[dtype]
    scaled = x / scale_M[:, None]  # at most a rounding error past the largest, which rounds back to it
    return (scaled.round_() if dtype == torch.int8 else scaled).to(dtype), scale_M
