"""A linear layer, by one of the libraries for matrix products that PyTorch ships.

Shapes: any leading dimensions (...), C channels in, F channels out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from avarc_kernels.dispatch import select_backend


def linear(x: Tensor, weight_FC: Tensor, bias_F: Tensor | None, *, backend: str = "torch") -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: (..., C): float32, bfloat16 or float16; any strides.
        weight_FC, bias_F: in x's dtype.
        backend: "torch" is F.linear: for float32 on a CPU, MKL in most builds. "onednn" is oneDNN for these.
    Returns: (..., F) in x's dtype; the error against float64 is at most twice that of the definition in x's dtype.
    Raises: ValueError when shapes or dtypes disagree, or when the backend cannot run or cannot compute the gradients
        that an input requires.
    """
    others = [weight_FC] if bias_F is None else [weight_FC, bias_F]
    if x.shape[-1:] != weight_FC.shape[1:] or any(len(other) != len(weight_FC) for other in others):
        raise ValueError(f"x {tuple(x.shape)}, weight and bias {[tuple(other.shape) for other in others]}")
    if any(other.dtype != x.dtype for other in others):
        raise ValueError(f"x is {x.dtype}, weight and bias {[other.dtype for other in others]}")
    if select_backend(backend, ("torch", "onednn"), x, weight_FC, bias_F) == "onednn":
        if why := onednn_missing(x):
            raise ValueError(f"backend 'onednn' cannot run: {why}")
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_FC, bias_F, "none", [], "")
        return product
    return functional.linear(x, weight_FC, bias_F)


def onednn_missing(x: Tensor) -> str | None:
    """Why `linear` cannot multiply this tensor by oneDNN; None when it can."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return f"it is for float32 on a CPU, and the tensor is {x.dtype} on {x.device.type}"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    return None
