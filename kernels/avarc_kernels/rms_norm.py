"""RMSNorm, and the residual addition before it.

Shapes: M rows (positions of all sequences), C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_kernels.dispatch import select_backend


def residual_rms_norm(
    x_MC: Tensor,
    y_MC: Tensor | None,
    weight_C: Tensor,
    *,
    eps: float,
    dtype: torch.dtype | None = None,
    backend: str = "torch",
) -> tuple[Tensor, Tensor]:
    """x + y and its RMSNorm: the end of one residual branch and the start of the next.

        stream = x + y
        normed = stream / sqrt(mean_c stream_c^2 + eps) * weight

    Args:
        x_MC: residual stream: float32, bfloat16 or float16; contiguous for "triton".
        y_MC: the branch's output, in any floating dtype; None for the first norm, which follows no branch.
        weight_C: gain of each channel, in any floating dtype.
        eps: added to the mean square; embeddings are small enough for it to matter.
        dtype: of `normed`; x's own if None. The arithmetic is float32 for all dtypes.
        backend: "torch", or "triton": one read of x and y, one write of either result.
    Returns: the new stream in x's dtype, and `normed` in `dtype`, both (M, C); the error against float64 is at most
        twice that of the definition in float32, before rounding to `dtype`.
    Raises: ValueError when shapes disagree, strides are unsupported, or the backend cannot run or cannot compute the
        gradients that an input requires.
    Source: arXiv:1910.07467.
    """
    if x_MC.ndim < 2 or weight_C.shape != x_MC.shape[-1:] or (y_MC is not None and y_MC.shape != x_MC.shape):
        branch = "" if y_MC is None else f", branch {tuple(y_MC.shape)}"
        raise ValueError(f"stream {tuple(x_MC.shape)}{branch}, weight {tuple(weight_C.shape)}")
    if select_backend(backend, ("torch", "triton"), x_MC, y_MC, weight_C) == "triton":
        from avarc_kernels import rms_norm_triton

        return rms_norm_triton.residual_rms_norm(x_MC, y_MC, weight_C, eps, dtype or x_MC.dtype)
    stream = x_MC if y_MC is None else (_exact(x_MC) + y_MC).to(x_MC.dtype)
    x = _exact(stream)
    square_M1 = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()  # one pass, and x squared is not stored
    normed = (x * torch.rsqrt(square_M1 / x.shape[-1] + eps)).mul_(weight_C.to(x.dtype))
    return stream, normed.to(dtype or x_MC.dtype)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
