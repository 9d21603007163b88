"""Which device and which kernels a run uses."""

from __future__ import annotations

import time

import torch

from avarc_cli import environment, processes
from avarc_cli.errors import UsageError, first_line
from avarc_cli.settings import DEVICE_TYPES, FLASH, attends_in_half, check_device, check_kernels
from avarc_kernels import flash_missing, triton_missing


def pick_device(device: str) -> torch.device:
    """The device that "auto" or a name stands for; of several processes that train together, each has its own GPU.

    Raises: UsageError for a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and processes.count() > 1:
        device = f"cuda:{processes.local_rank()}"
    check_device(device)
    what, fix = f"cannot use device '{device}'", "use auto or cpu; avarc doctor lists devices"
    try:
        place = torch.device(device)
        if place.type not in DEVICE_TYPES:
            raise UsageError(what, f"avarc runs on {', '.join(DEVICE_TYPES)}", fix)
        torch.empty(0, device=place)
        if place.type == "cuda" and processes.count() > 1:
            torch.cuda.set_device(place)  # where NCCL works as well
    except (ImportError, RuntimeError, AssertionError) as error:
        raise UsageError(what, first_line(error).partition(". ")[0], fix) from None
    return place


def pick_kernels(kernels: str, device: torch.device, precision: str) -> str:
    """The implementation that "auto" or a name stands for.

    auto is Triton where it runs and attention is in half precision: on an H200, most models were 1.6 to 2.1 times as
    fast as with PyTorch in bf16, and 2.8 to 3.5 times in fp8; a RAR was as fast. In fp32 Triton is slower, and in tf32
    less exact (docs/gpu.md). Beside flash-attn's attention, the other operations are Triton's where it runs.

    Args:
        precision: the one that scores; of a cascade, one of its two.
    Raises: UsageError for kernels that are unknown or cannot run there.
    """
    check_kernels(kernels)
    why = triton_missing(device)
    if kernels == "auto":
        return "triton" if device.type == "cuda" and why is None and attends_in_half(precision) else "torch"
    if kernels == "triton" and why is not None:
        raise UsageError("cannot use the triton kernels", why, "use --kernels auto, or torch")
    if kernels == FLASH:
        if (missing := flash_missing(device)) is not None:
            raise UsageError("cannot use flash-attn", missing, "use --kernels auto, or torch")
        return f"{FLASH}+torch" if why else f"{FLASH}+triton"
    return kernels


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xpu":
        return torch.xpu.get_device_name(device)
    return str(environment.machine()["cpu"])  # with mps the GPU is part of it


def product_rate(device: torch.device, *, rounds: int = 5) -> float:
    """Operations per second of a matrix product of typical size: fp32 on a CPU, bf16 on CUDA."""
    cuda = device.type == "cuda"
    dtype, rows = (torch.bfloat16, 8192) if cuda else (torch.float32, 1024)
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(rows, 8192 if cuda else 1024, device=device, generator=generator).to(dtype)
    b = torch.randn(a.shape[1], 8192 if cuda else 4096, device=device, generator=generator).to(dtype)
    seconds = []
    for _ in range(1 + rounds):  # the first warms up
        started = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * a.shape[0] * a.shape[1] * b.shape[1] / min(seconds[1:])
