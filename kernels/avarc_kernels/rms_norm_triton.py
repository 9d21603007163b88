"""`residual_rms_norm` in Triton: one program per row of the stream, which stays in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import launch


@triton.jit
def _residual_rms_norm_kernel(
    x_ptr,
    y_ptr,
    weight_ptr,
    stream_ptr,
    normed_ptr,
    C,
    EPS: tl.constexpr,
    HAS_Y: tl.constexpr,  # if not, y and stream are not accessed
    BLOCK_C: tl.constexpr,
):
    """One row of RMSNorm [1], after a residual addition if HAS_Y:

        stream = x + y
        normed = stream / sqrt(sum_c stream_c^2 / C + EPS) * weight

    References:
        [1] Root Mean Square Layer Normalization, arXiv:1910.07467
    """
    m = tl.program_id(0).to(tl.int64)  # int64: M * C can exceed 2**31
    c = tl.arange(0, BLOCK_C)
    mask = c < C
    x = tl.load(x_ptr + m * C + c, mask=mask, other=0.0).to(tl.float32)
    if HAS_Y:
        y = tl.load(y_ptr + m * C + c, mask=mask, other=0.0).to(tl.float32)
        stream = (x + y).to(stream_ptr.dtype.element_ty)
        tl.store(stream_ptr + m * C + c, stream, mask=mask)
        x = stream.to(tl.float32)  # normalize what the next branch reads, rounding included
    weight = tl.load(weight_ptr + c, mask=mask, other=0.0).to(tl.float32)
    normed = x * (1.0 / tl.sqrt(tl.sum(x * x, 0) / C + EPS)) * weight
    tl.store(normed_ptr + m * C + c, normed.to(normed_ptr.dtype.element_ty), mask=mask)


def residual_rms_norm(
    x_MC: Tensor, y_MC: Tensor | None, weight_C: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `rms_norm.residual_rms_norm`. Raises: ValueError when x, y or the weight is not contiguous."""
    if any(t is not None and not t.is_contiguous() for t in (x_MC, y_MC, weight_C)):
        raise ValueError("triton needs a contiguous stream, branch and weight")
    width = x_MC.shape[-1]
    normed = torch.empty(x_MC.shape, dtype=dtype, device=x_MC.device)
    stream = x_MC if y_MC is None else torch.empty_like(x_MC)
    block = triton.next_power_of_2(width)
    if x_MC.numel():
        launch(
            _residual_rms_norm_kernel,
            x_MC.numel() // width,
            x_MC,
            x_MC if y_MC is None else y_MC,
            weight_C,
            stream,
            normed,
            width,
            EPS=eps,
            HAS_Y=y_MC is not None,
            BLOCK_C=block,
            num_warps=min(max(block // 256, 1), 8),
            enable_fp_fusion=True,
        )
    return stream, normed
