"""GELU (arXiv:1606.08415), alone and after a linear."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import avarc_kernels
from avarc_cli.layers.kernels import others
from avarc_cli.layers.linears import CACHED, CalledLinear, linear
from avarc_cli.layers.precision import product_backend


def linear_gelu(layer: nn.Module, x: Tensor, *, approximate: str = "tanh", kernels: str = "torch") -> Tensor:
    """GELU of `linear(layer, x)`, (..., N) in the layer's dtype, as a part of the product where that is faster.

    On a CPU it is where oneDNN multiplies (`product_backend`); of bfloat16 numbers, the result is then rounded once in
    place of twice.

    Args:
        approximate: the form of GELU, "tanh" or "none", as torch calls it.
        kernels: the model's implementation of operations (`layers.kernels`).
    """
    if isinstance(layer, nn.Linear) and not isinstance(layer, CalledLinear):
        weight = layer.weight  # a changed one is computed whenever it is read
        rows_MK = x.flatten(0, -2).to(weight.dtype)
        if backend := _fused_by(rows_MK, kernels, approximate):
            rows_MN = avarc_kernels.linear_gelu(rows_MK, weight, layer.bias, approximate=approximate, backend=backend)
            return rows_MN.unflatten(0, x.shape[:-1])
    y = linear(layer, x)
    return gelu(y) if approximate == "tanh" else F.gelu(y)


def _fused_by(x_MK: Tensor, kernels: str, approximate: str) -> str | None:
    """The backend of `avarc_kernels.linear_gelu` that is to be used for this product."""
    if x_MK.is_cuda:
        return "cublaslt" if others(kernels) == "triton" and approximate == "tanh" else None
    return "onednn" if product_backend(x_MK) == "onednn" else None


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form. Without gradients on a CPU, x (contiguous) is overwritten.

    There it is computed as x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), the same function, in float32, because torch's
    exp is three times faster than its tanh; in pieces that stay in a core's cache from the first step to the last.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    for piece in x.view(-1).split(CACHED * torch.get_num_threads()):
        exact = piece.float()
        inner = torch.addcmul(exact, exact * exact, exact, value=0.044715).mul_(2 * math.sqrt(2 / math.pi))
        torch.mul(exact, inner.sigmoid_(), out=exact)
        if exact is not piece:
            piece.copy_(exact)
    return x
