"""A linear layer followed by GELU. Shapes: M rows, C width in, F width out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from avarc_kernels.dispatch import select_backend
from avarc_kernels.linear import onednn_missing


def linear_gelu(
    x_MC: Tensor, weight_FC: Tensor, bias_F: Tensor, *, approximate: str = "tanh", backend: str = "torch"
) -> Tensor:
    """gelu(x @ weight.T + bias), as in a transformer's MLP.

    Args:
        x_MC, weight_FC, bias_F: float32, bfloat16 or float16, all of one dtype; C contiguous for "triton".
        approximate: the form of GELU, as torch calls it: "tanh", as VAR has it, or "none" for the exact one.
        backend: "torch" is F.linear and F.gelu. "cublaslt" is one cuBLASLt matmul with a GELU epilogue (CUDA),
            "triton" one matmul kernel with bias and GELU in its epilogue, both in the tanh form only; "onednn" is one
            product of oneDNN with a GELU epilogue (CPU). These save one read and one write of the result.
    Returns: (M, F) in x's dtype; the error against float64 is at most twice that of the definition in x's dtype.
    Raises: ValueError when shapes or dtypes disagree, or when the backend cannot run or cannot compute the gradients
        that an input requires.
    Source: GELU, arXiv:1606.08415.
    """
    if x_MC.ndim != 2 or x_MC.shape[1:] != weight_FC.shape[1:] or weight_FC.shape[:1] != bias_F.shape:
        raise ValueError(f"x {tuple(x_MC.shape)}, weight {tuple(weight_FC.shape)}, bias {tuple(bias_F.shape)}")
    if not x_MC.dtype == weight_FC.dtype == bias_F.dtype:
        raise ValueError(f"x is {x_MC.dtype}, weight {weight_FC.dtype}, bias {bias_F.dtype}")
    if approximate not in ("tanh", "none"):
        raise ValueError(f"unknown form of GELU '{approximate}': the choices are tanh, none")
    if weight_FC.is_mkldnn and backend != "onednn":
        raise ValueError("a packed weight is for backend 'onednn'")
    select_backend(backend, ("torch", "cublaslt", "triton", "onednn"), x_MC, weight_FC, bias_F)
    if backend == "onednn":
        if why := onednn_missing(x_MC):
            raise ValueError(f"backend 'onednn' cannot run: {why}")
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x_MC, weight_FC, bias_F, "gelu", [], approximate)
        return product
    if backend != "torch" and approximate != "tanh":
        raise ValueError(f"backend '{backend}' has the tanh form of GELU only")
    if backend == "triton":
        from avarc_kernels import linear_gelu_triton

        return linear_gelu_triton.linear_gelu(x_MC, weight_FC, bias_F)
    if backend == "cublaslt":
        if x_MC.device.type != "cuda":
            raise ValueError("backend 'cublaslt' cannot run on a CPU: torch's CPU epilogue is the erf form of GELU")
        return torch._addmm_activation(bias_F, x_MC, weight_FC.T, use_gelu=True)
    return functional.gelu(functional.linear(x_MC, weight_FC, bias_F), approximate=approximate)
