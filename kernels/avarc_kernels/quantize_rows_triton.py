"""`quantize_rows` in Triton: one program per row, which stays in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import launch


@triton.jit
def _quantize_rows_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    C,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
    ROUND: tl.constexpr,  # to the nearest integer, halves to even
    BLOCK_C: tl.constexpr,
):
    """Absmax quantization of one row [1]:

        scale = max(max_c |x_c|, SMALLEST) / LARGEST,   NaN if any x_c is
        q = x / scale

    References:
        [1] LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale, arXiv:2208.07339
    """
    m = tl.program_id(0).to(tl.int64)  # int64: M * C can exceed 2**31
    c = tl.arange(0, BLOCK_C)
    x = tl.load(x_ptr + m * C + c, mask=c < C, other=0.0).to(tl.float32)
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(x), 0), SMALLEST), LARGEST)
    q = tl.div_rn(x, tl.zeros_like(x) + scale)  # correctly rounded, like PyTorch's division
    if ROUND:
        q = (q + 12582912.0) - 12582912.0  # 1.5 * 2**23: the sum has no bits left for a fraction
    tl.store(q_ptr + m * C + c, q.to(q_ptr.dtype.element_ty), mask=c < C)
    has_nan = tl.max((x != x).to(tl.int32), 0)  # a maximum passes over them
    tl.store(scale_ptr + m, tl.where(has_nan > 0, float("nan"), scale))


def quantize_rows(x_MC: Tensor, dtype: torch.dtype, largest: float, smallest: float) -> tuple[Tensor, Tensor]:
    """See `quantize_rows.quantize_rows`. Raises: ValueError when x is not contiguous.

    largest: the code that a row's largest magnitude maps to; smallest: lower bound of that magnitude.
    """
    if not x_MC.is_contiguous():
        raise ValueError(f"triton needs contiguous rows: the strides are {x_MC.stride()}")
    q_MC = torch.empty(x_MC.shape, dtype=dtype, device=x_MC.device)
    scale_M = torch.empty(len(x_MC), dtype=torch.float32, device=x_MC.device)
    block = triton.next_power_of_2(x_MC.shape[1])
    if len(x_MC):
        launch(
            _quantize_rows_kernel,
            len(x_MC),
            x_MC,
            q_MC,
            scale_M,
            x_MC.shape[1],
            LARGEST=largest,
            SMALLEST=smallest,
            ROUND=dtype == torch.int8,
            BLOCK_C=block,
            num_warps=min(max(block // 256, 1), 8),
            enable_fp_fusion=True,
        )
    return q_MC, scale_M
