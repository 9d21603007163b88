"""What all operations share: the choice of a backend. The one that runs is always the one that was asked for."""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import cache
from typing import Any

import torch
from torch import Tensor

INFERENCE_ONLY = ("triton", "cublaslt", "onednn", "avarc")  # backends without a backward pass
FLASH_CAPABILITY = (8, 0)  # compute capability of the first GPUs that flash-attn 2 supports
TRITON_CAPABILITY = (8, 0)  # of the first GPUs that Triton supports
flash_devices = ("cuda",)  # types of devices; tests add the CPU, where they put a stand-in in flash-attn's place


def triton_missing(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on this device; None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type != "cuda":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else f"Triton kernels need a CUDA device, and the tensors are on {device.type}"
    return _cannot_compile(device)


@cache
def _cannot_compile(device: torch.device) -> str | None:
    """Why Triton cannot compile for this GPU; None where it can. A C compiler builds what launches each kernel."""
    if torch.version.hip is not None:
        return "the Triton kernels were never tried on an AMD GPU"
    if (capability := torch.cuda.get_device_capability(device)) < TRITON_CAPABILITY:
        return f"Triton needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, and there is no gcc, no clang and no CC"
    return None


def flash_missing(device: torch.device) -> str | None:
    """Why flash-attn cannot run on this device; None when it can, for half precision."""
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    if device.type not in flash_devices:
        return f"flash-attn needs a CUDA device, and the tensors are on {device.type}"
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < FLASH_CAPABILITY:
        return f"flash-attn needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return None


def select_backend(backend: str, offered: tuple[str, ...], x: Tensor, *others: Tensor | None) -> str:
    """Choose the backend, and check that it can run.

    Args:
        backend: the caller's choice. "flash+torch" and "flash+triton" are two: "flash" for an operation that has it,
            and the other for all that have not.
        offered: the backends of this operation.
        x: the operation's main input; its device is the one that counts.
        others: all other floating-point inputs; None for an optional one that is absent.
    Returns: the one of this operation.
    Raises: ValueError when the operation does not have this backend, when the backend cannot run on x's device, or
        when it has no backward pass and an input requires gradients: they would be lost silently.
    """
    if backend.startswith("flash+"):
        backend = "flash" if "flash" in offered else backend.removeprefix("flash+")
    if backend not in offered:
        raise ValueError(f"unknown backend '{backend}': the choices are {', '.join(offered)}")
    if backend == "triton" and (why := triton_missing(x.device)):
        raise ValueError(f"backend 'triton' cannot run: {why}")
    if backend == "flash" and (why := flash_missing(x.device)):
        raise ValueError(f"backend 'flash' cannot run: {why}")
    if backend in INFERENCE_ONLY and torch.is_grad_enabled():
        for tensor in (x, *others):
            if tensor is not None and tensor.requires_grad:
                raise ValueError(
                    f"backend '{backend}' computes no gradients, and an input of shape {tuple(tensor.shape)} requires "
                    "them: use backend='torch', or call it under torch.no_grad()"
                )
    return backend


def launch(kernel: Any, programs: int, x: Tensor, *args: Any, **options: Any) -> None:
    """Run this many programs of a Triton kernel where x is. Triton itself launches on the current device.

    Args:
        args: of the kernel after x.
        options: the kernel's constants, and those of a launch (num_warps, num_stages, enable_fp_fusion).
    """
    with torch.cuda.device_of(x):
        kernel[(programs,)](x, *args, **options)


def dot_precision(dtype: torch.dtype) -> str:
    """Input precision of tl.dot for this dtype: float32 follows PyTorch's TF32 setting, so that backends agree."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"
