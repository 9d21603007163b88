"""A linear layer, by one of the libraries for matrix products that PyTorch ships, or by avarc's own code.

Shapes: any leading dimensions (...), C channels in, F channels out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from avarc_kernels import float32_linear
from avarc_kernels.dispatch import select_backend


def linear(x: Tensor, weight_FC: Tensor, bias_F: Tensor | None, *, backend: str = "torch") -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: (..., C): float32, bfloat16 or float16; any strides.
        weight_FC, bias_F: in x's dtype; the weight as it is or, for "onednn", `packed`.
        backend: "torch" is F.linear: for float32 on a CPU, MKL in most builds. "onednn" is oneDNN, for float32 and
            bfloat16 on a CPU. F.linear, too, has oneDNN multiply bfloat16, but takes 2 to 18 % longer on a Zen 4
            (linears of 1024 and of 64 channels). "avarc" is `float32_linear`, for float32 on x86 CPUs.
    Returns: (..., F) in x's dtype; the error against float64 is at most twice that of the definition in x's dtype.
    Raises: ValueError when shapes or dtypes disagree, or when the backend cannot run or cannot compute the gradients
        that an input requires.
    """
    others = [weight_FC] if bias_F is None else [weight_FC, bias_F]
    if x.shape[-1:] != weight_FC.shape[1:] or any(len(other) != len(weight_FC) for other in others):
        raise ValueError(f"x {tuple(x.shape)}, weight and bias {[tuple(other.shape) for other in others]}")
    if any(other.dtype != x.dtype for other in others):
        raise ValueError(f"x is {x.dtype}, weight and bias {[other.dtype for other in others]}")
    select_backend(backend, ("torch", "onednn", "avarc"), x, weight_FC, bias_F)
    if why := missing(backend, x):
        raise ValueError(f"backend '{backend}' cannot run: {why}")
    if backend == "onednn":
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_FC, bias_F, "none", [], "")
        return product
    if weight_FC.is_mkldnn:
        raise ValueError("a packed weight is for backend 'onednn'")
    if backend == "avarc":
        x_MC = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        return float32_linear.float32_linear(x_MC, weight_FC, bias_F).view(*x.shape[:-1], len(weight_FC))
    return functional.linear(x, weight_FC, bias_F)


def missing(backend: str, x: Tensor) -> str | None:
    """Why `linear` cannot multiply this tensor by this backend; None when it can."""
    if backend == "avarc":
        return float32_linear.missing(x)
    return onednn_missing(x) if backend == "onednn" else None


def packed(weight_FC: Tensor) -> Tensor:
    """The weight in the layout in which oneDNN multiplies by it, which otherwise copies it there at every product.

    Products of linears of 1024 channels in bfloat16 take 5 % less time on a Zen 4 for 2700 rows, 30 % for 30, and half
    for one.

    Args:
        weight_FC: float32 or bfloat16 on a CPU (`onednn_missing`), without gradients.
    Returns: a tensor of the same shape and dtype that has no elements for others (`is_mkldnn`); its to_dense() is the
        weight again.
    """
    layout: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_FC.contiguous(), None)
    return layout


def onednn_missing(x: Tensor) -> str | None:
    """Why `linear` cannot multiply this tensor by oneDNN; None when it can."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return f"it is for float32 and bfloat16 on a CPU, and the tensor is {x.dtype} on {x.device.type}"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    if x.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 products on this CPU"
    return None
