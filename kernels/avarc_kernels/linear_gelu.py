"""A linear layer and the GELU after it. Shapes: M rows, C width in, F width out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from avarc_kernels.dispatch import chosen


def linear_gelu(x_MC: Tensor, weight_FC: Tensor, bias_F: Tensor, *, backend: str = "torch") -> Tensor:
    """gelu(x @ weight.T + bias), GELU in its tanh form, as in VAR's MLP.

    Args:
        x_MC, weight_FC, bias_F: float32, bfloat16 or float16, all of one dtype; C contiguous for "triton".
        backend: "torch" is F.linear and F.gelu; "cublaslt" asks cuBLASLt for the GELU as the product's epilogue
            (CUDA), "triton" is our own product with bias and GELU in its epilogue. Both save a read and a write of
            the result.
    Returns: (M, F) in x's dtype; at most twice as far from float64 as the definition in that dtype is.
    Raises: ValueError when shapes or dtypes disagree, or the backend cannot run.
    """
    if x_MC.ndim != 2 or x_MC.shape[1:] != weight_FC.shape[1:] or weight_FC.shape[:1] != bias_F.shape:
        raise ValueError(f"x {tuple(x_MC.shape)}, weight {tuple(weight_FC.shape)}, bias {tuple(bias_F.shape)}")
    if not x_MC.dtype == weight_FC.dtype == bias_F.dtype:
        raise ValueError(f"x is {x_MC.dtype}, weight {weight_FC.dtype}, bias {bias_F.dtype}")
    if chosen(backend, ("torch", "cublaslt", "triton"), x_MC) == "triton":
        from avarc_kernels import linear_gelu_triton

        return linear_gelu_triton.linear_gelu(x_MC, weight_FC, bias_F)
    if backend == "cublaslt":
        if x_MC.device.type != "cuda":
            raise ValueError("backend 'cublaslt' cannot run: on a CPU torch's epilogue is another GELU")
        return torch._addmm_activation(bias_F, x_MC, weight_FC.T, use_gelu=True)
    return functional.gelu(functional.linear(x_MC, weight_FC, bias_F), approximate="tanh")
