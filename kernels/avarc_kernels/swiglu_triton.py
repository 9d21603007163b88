"""`swiglu` in Triton: elementwise."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import launch

BLOCK = 1024
"""Numbers of a program; not measured."""


@triton.jit
def _swiglu_kernel(a_ptr, b_ptr, out_ptr, N, BLOCK: tl.constexpr):
    """out = a sigmoid(a) b, with 1 / (1 + e^-a) for the sigmoid [1].

    References:
        [1] GLU Variants Improve Transformer, arXiv:2002.05202
    """
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # int64: M * F can exceed 2**31
    mask = n < N
    a = tl.load(a_ptr + n, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + n, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + n, (a / (1.0 + tl.exp(-a)) * b).to(out_ptr.dtype.element_ty), mask=mask)


def swiglu(a_MF: Tensor, b_MF: Tensor) -> Tensor:
    """See `swiglu.swiglu`. Raises: ValueError when an input is not contiguous."""
    if not (a_MF.is_contiguous() and b_MF.is_contiguous()):
        raise ValueError(f"triton needs contiguous inputs: the strides are {a_MF.stride()} and {b_MF.stride()}")
    out = torch.empty_like(a_MF)
    if out.numel():
        launch(
            _swiglu_kernel,
            triton.cdiv(out.numel(), BLOCK),
            a_MF,
            b_MF,
            out,
            out.numel(),
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out
