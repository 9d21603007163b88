"""The gate of a SwiGLU feed-forward layer.

Shapes: M rows (positions of all sequences), F hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_kernels.dispatch import select_backend


def swiglu(a_MF: Tensor, b_MF: Tensor, *, backend: str = "torch") -> Tensor:
    """silu(a) * b = a sigmoid(a) b.

    Args:
        a_MF, b_MF: outputs of the two linears, in one floating dtype; contiguous for "triton".
        backend: "torch", or "triton": one read of either, one write. The arithmetic is float32.
    Returns: in a's dtype; the error against float64 is at most twice that of the definition in float32, before
        rounding to that dtype.
    Raises: ValueError when shapes or dtypes disagree, or when the backend cannot run or cannot compute the gradients
        that an input requires.
    Source: arXiv:2002.05202, section 2.
    """
    if a_MF.shape != b_MF.shape or a_MF.dtype != b_MF.dtype:
        raise ValueError(f"a is {tuple(a_MF.shape)} {a_MF.dtype}, b {tuple(b_MF.shape)} {b_MF.dtype}")
    if select_backend(backend, ("torch", "triton"), a_MF, b_MF) == "triton":
        from avarc_kernels import swiglu_triton

        return swiglu_triton.swiglu(a_MF, b_MF)
    if a_MF.dtype in (torch.bfloat16, torch.float16):
        return F.silu(a_MF.float()).mul_(b_MF).to(a_MF.dtype)
    return F.silu(a_MF).mul_(b_MF)
