"""`adaln` and `gated_residual_adaln` in Triton: one program per row of the stream, which stays in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import launch


@triton.jit
def _adaln_kernel(
    x_ptr,
    y_ptr,
    gate_ptr,
    scale_ptr,
    shift_ptr,
    row_ptr,
    stream_ptr,
    out_ptr,
    T,
    C,
    stride_gate,
    stride_scale,
    stride_shift,
    EPS: tl.constexpr,
    GATED: tl.constexpr,  # whether x + gate * y comes first; if not, y, gate and stream are not accessed
    HAS_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One row of AdaLN [1], after a gated residual if GATED:

        stream = x + gate * y
        mean = sum_c stream_c / C               (subtracted, and then the mean of the rest: the first is rounded)
        var = sum_c (stream_c - mean)^2 / C     (a second pass, in registers: no cancellation)
        out = (stream - mean) / sqrt(var + EPS) * (1 + scale) + shift

    References:
        [1] Scalable Diffusion Models with Transformers, arXiv:2212.09748
    """
    m = tl.program_id(0).to(tl.int64)  # int64: P * T * C can exceed 2**31
    sequence = m // T
    row = tl.load(row_ptr + sequence).to(tl.int64) if HAS_ROWS else sequence
    c = tl.arange(0, BLOCK_C)
    mask = c < C
    x = tl.load(x_ptr + m * C + c, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        y = tl.load(y_ptr + m * C + c, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + row * stride_gate + c, mask=mask, other=0.0).to(tl.float32)
        stream = (x + gate * y).to(stream_ptr.dtype.element_ty)
        tl.store(stream_ptr + m * C + c, stream, mask=mask)
        x = stream.to(tl.float32)  # normalize what the next branch reads, rounding included
    mean = tl.sum(x, 0) / C
    centered = tl.where(mask, x - mean, 0.0)
    centered = tl.where(mask, centered - tl.sum(centered, 0) / C, 0.0)  # a constant row leaves the mean's rounding
    var = tl.sum(centered * centered, 0) / C
    scale = tl.load(scale_ptr + row * stride_scale + c, mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + row * stride_shift + c, mask=mask, other=0.0).to(tl.float32)
    out = centered * (1.0 / tl.sqrt(var + EPS)) * (1.0 + scale) + shift
    tl.store(out_ptr + m * C + c, out.to(out_ptr.dtype.element_ty), mask=mask)


def adaln(
    x_PTC: Tensor, scale_NC: Tensor, shift_NC: Tensor, row_P: Tensor | None, dtype: torch.dtype, eps: float
) -> Tensor:
    """See `adaln.adaln`. Raises: ValueError when x, or a row of a table, is not contiguous."""
    return _launch(x_PTC, None, None, scale_NC, shift_NC, row_P, dtype, eps)[1]


def gated_residual_adaln(
    x_PTC: Tensor,
    y_PTC: Tensor,
    gate_NC: Tensor,
    scale_NC: Tensor,
    shift_NC: Tensor,
    row_P: Tensor | None,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `adaln.gated_residual_adaln`. Raises: ValueError when x, y, or a row of a table, is not contiguous."""
    return _launch(x_PTC, y_PTC, gate_NC, scale_NC, shift_NC, row_P, dtype, eps)


def _launch(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    row: Tensor | None,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Tensor, Tensor]:
    tables = [t for t in (gate, scale, shift) if t is not None]
    if any(t is not None and not t.is_contiguous() for t in (x, y)) or any(t.stride(1) != 1 for t in tables):
        raise ValueError("triton needs a contiguous stream and branch, and class tables with contiguous rows")
    sequences, positions, width = x.shape
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    stream = x if y is None else torch.empty_like(x)
    if x.numel() == 0:
        return stream, out
    block = triton.next_power_of_2(width)
    launch(
        _adaln_kernel,
        sequences * positions,
        x,
        x if y is None else y,
        scale if gate is None else gate,
        scale,
        shift,
        x if row is None else row.contiguous(),
        stream,
        out,
        positions,
        width,
        0 if gate is None else gate.stride(0),
        scale.stride(0),
        shift.stride(0),
        EPS=eps,
        GATED=y is not None,
        HAS_ROWS=row is not None,
        BLOCK_C=block,
        num_warps=min(max(block // 256, 1), 8),
        enable_fp_fusion=True,
    )
    return stream, out
