"""LayerNorm of every head's queries or keys.

Shapes: P sequences, T positions, H heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_kernels.dispatch import select_backend


def head_layer_norm(
    x_PTHD: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    *,
    eps: float,
    dtype: torch.dtype | None = None,
    backend: str = "torch",
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the channels of each head.

    Args:
        x_PTHD: queries or keys: float32, bfloat16 or float16; any strides, D contiguous for "triton".
        weight_D, bias_D: gain and bias of each channel, in any floating dtype, the same for all heads.
        eps: added to the variance.
        dtype: of the result; x's own if None. The arithmetic is float32 for all dtypes.
        backend: "torch", or "triton": one read and one write, many heads in a program.
    Returns: (P, T, H, D), contiguous; the error against float64 is at most twice that of the definition in float32,
        before rounding to `dtype`.
    Raises: ValueError when shapes disagree, strides are unsupported, or the backend cannot run or cannot compute the
        gradients that an input requires.
    Source: arXiv:1607.06450, for queries and keys as in arXiv:2302.05442.
    """
    width = x_PTHD.shape[-1:]
    if x_PTHD.ndim != 4 or weight_D.shape != width or bias_D.shape != width:
        raise ValueError(f"heads {tuple(x_PTHD.shape)}, weight {tuple(weight_D.shape)}, bias {tuple(bias_D.shape)}")
    if select_backend(backend, ("torch", "triton"), x_PTHD, weight_D, bias_D) == "triton":
        from avarc_kernels import head_layer_norm_triton

        return head_layer_norm_triton.head_layer_norm(x_PTHD, weight_D, bias_D, eps, dtype or x_PTHD.dtype)
    x = x_PTHD if x_PTHD.dtype == torch.float64 else x_PTHD.float()
    normed = F.layer_norm(x, width, weight_D.to(x.dtype), bias_D.to(x.dtype), eps)
    return normed.to(dtype or x_PTHD.dtype)
