"""Which implementation of an op runs: always the one that was asked for."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor


def triton_missing(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on this device; None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton's kernels need a CUDA device, the tensors are on {device.type}"
    return None


def chosen(backend: str, offered: tuple[str, ...], x: Tensor) -> str:
    """`backend`, checked.

    Raises: ValueError when the op does not offer it or when it cannot run on x's device.
    """
    if backend not in offered:
        raise ValueError(f"backend '{backend}' is none of {', '.join(offered)}")
    if backend == "triton" and (why := triton_missing(x.device)):
        raise ValueError(f"backend 'triton' cannot run: {why}")
    return backend


def dot_precision(dtype: torch.dtype) -> str:
    """What a kernel's tl.dot does with float32 inputs: PyTorch's own setting for products, so that backends agree."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"
