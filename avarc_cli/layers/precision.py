"""The precisions that a transformer can run in.

In torch, TF32 is a switch of the whole process. It is set around computations (`tf32`, `inference`) and never by
loading, so models of different precision can be used in turn, though not in several threads at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from avarc_cli.errors import UsageError
from avarc_cli.settings import (
    AUTO_PRECISION,
    BY_AVARC,
    BY_ONEDNN,
    BY_RULE,
    BY_TORCH,
    CASCADE,
    EXACT,
    check_precision,
    check_scoring_precision,
)
from avarc_kernels.int16_linear import missing as int16_missing
from avarc_kernels.linear import missing as product_missing
from avarc_kernels.linear import onednn_missing

LIBRARY_WORDS = {BY_ONEDNN: "float32 products by oneDNN", BY_AVARC: "float32 products by avarc"}
FP8_CAPABILITY = (8, 9)  # compute capability of the first GPUs that multiply float8 (torch._scaled_mm requires it)


@dataclass(frozen=True)
class Precision:
    """How the blocks of a transformer compute.

    Norms, residual stream and sums of log-probabilities are float32 in every precision. So is the class modulation of a
    VAR (a RAR's has the dtype of the activations), and on a CPU the head.
    """

    name: str
    """A value of --precision."""
    activations: torch.dtype
    """Of the inputs and outputs of linears."""
    product: torch.dtype
    """Of the numbers that linears multiply."""
    attention: torch.dtype
    """Of queries, keys and values."""
    library: str = BY_RULE
    """What multiplies float32 matrices on a CPU: "torch" (the library that PyTorch calls itself, MKL on x86), "onednn",
    "avarc" for our own code, or "rule" for oneDNN where `onednn_is_faster` expects it to be faster."""

    @property
    def quantized(self) -> bool:
        """Whether linears multiply numbers that have scales: integers or 8-bit floats."""
        return self.product in (torch.int16, torch.int8, torch.float8_e4m3fn)


FP32 = Precision("fp32", torch.float32, torch.float32, torch.float32)
PRECISIONS = {
    precision.name: precision
    for precision in (
        FP32,
        Precision("tf32", torch.float32, torch.float32, torch.float32),
        Precision("bf16", torch.bfloat16, torch.bfloat16, torch.bfloat16),
        Precision("fp16", torch.float16, torch.float16, torch.float16),
        Precision("int16", torch.float32, torch.int16, torch.float32),
        Precision("int8", torch.float32, torch.int8, torch.float32),
        Precision("fp8", torch.bfloat16, torch.float8_e4m3fn, torch.bfloat16),
    )
}


def find(name: str, device: torch.device) -> Precision:
    """The precision of this name, as this device computes it.

    Raises: UsageError for an unknown precision, and for one that is not available on the device.
    """
    check_precision(name)
    why = missing(name, device)
    if why is not None:
        raise UsageError(f"{name} is not available on {device}", why, "use --precision fp32, or see avarc doctor")
    if name == "int8" and device.type == "cuda":
        return Precision("int8", torch.bfloat16, torch.int8, torch.bfloat16)
    if name == "int8" and cpu_has_bf16():
        return replace(PRECISIONS["int8"], attention=torch.bfloat16)
    return PRECISIONS[name]


def missing(name: str, device: torch.device) -> str | None:
    """Why this precision is not available on the device; None if it is."""
    if name in ("tf32", "fp8") and device.type != "cuda":
        return f"{name} needs a CUDA device"
    if name == "fp8" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return "its compute capability is below 8.9"
    if name == "int16":
        return "it is for CPUs only" if device.type != "cpu" else int16_missing()
    if name == "int8" and device.type == "cpu" and "onednn" not in torch.backends.quantized.supported_engines:
        return "this PyTorch was built without oneDNN, which computes the int8 products"
    if name == "int8" and device.type not in ("cpu", "cuda"):
        return "its 8-bit products are implemented for cpu and cuda only"
    return None


def low_precision(device: torch.device) -> str | None:
    """The low precision that suits this device; None where none is known to be faster than fp32.

    int8 is faster than bf16 and int16 on some CPUs (docs/performance.md), and fp8 on a GPU where products are large
    (docs/gpu.md), but both are so inexact that a cascade would leave more to fp32. Where int16 cannot be compiled, int8
    takes its place.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if device.type != "cpu":
        return None
    if cpu_has_bf16():
        return "bf16"
    return next((name for name in ("int16", "int8") if missing(name, device) is None), None)


def resolve(name: str, device: torch.device) -> str:
    """The precision that this name stands for on this device: a cascade names both of its precisions.

    auto is a cascade on a GPU, and on a CPU with bf16 products, or with VNNI and int16, where its first precision was
    at least 1.5 times as fast as fp32 (docs/performance.md).

    Raises: UsageError for an unknown precision, and for a cascade where nothing is faster than fp32.
    """
    check_scoring_precision(name)
    if name == AUTO_PRECISION:
        pays = device.type == "cuda" or (device.type == "cpu" and (cpu_has_bf16() or _has_fast_int16()))
        name = CASCADE if pays else EXACT
    if name != CASCADE:
        return name
    cheap = low_precision(device)
    if cheap is None:
        raise UsageError(f"a cascade gains nothing on {device}", "no precision is known to be faster", "use fp32")
    return f"{cheap}+{EXACT}"


def _has_fast_int16() -> bool:
    return cpu_has_vnni() and int16_missing() is None


def arithmetic(precision: Precision, device: torch.device, *, uses_library: bool) -> str:
    """The dtypes of this precision on this device, in words: int8 depends on the processor, and so do its scores.

    Args:
        uses_library: as `LikelihoodModel.uses_library`.
    """
    dtypes = {
        "products": precision.product,
        "activations": precision.activations,
        "attention": precision.attention,
    }
    words = [f"{what} {str(dtype).removeprefix('torch.')}" for what, dtype in dtypes.items()]
    if precision.name == "int8" and device.type == "cpu" and not cpu_has_vnni():
        words.append("weights of 7 bits")
    library = library_for(torch.empty(0, device=device), precision.library)
    if uses_library and library in LIBRARY_WORDS:
        words.append(LIBRARY_WORDS[library])
    return ", ".join(words)


def available(device: torch.device) -> tuple[str, ...]:
    """The precisions that are available on the device, in the order of PRECISIONS."""
    return tuple(name for name in PRECISIONS if missing(name, device) is None)


def cpu_has_vnni() -> bool:
    """Whether the CPU adds four 8-bit products in 32 bits (AVX512-VNNI), as torch sees it."""
    return bool(torch.cpu._is_vnni_supported())


def cpu_has_bf16() -> bool:
    """Whether the CPU has bfloat16 products (AVX512-BF16 or AMX), as torch sees it."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 matrix products inside; forbid it in convolutions, which only tokenizers have.

    Afterwards, also after an exception, torch's flags are as they were before.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = allowed, False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


class HasPrecision(Protocol):
    """A model that computes in one precision."""

    @property
    def precision(self) -> Precision: ...


_library = ContextVar("library", default=BY_RULE)


@contextmanager
def products_by(library: str) -> Iterator[None]:
    """Multiply float32 matrices on a CPU by this library (`Precision.library`) inside; afterwards as before."""
    before = _library.set(library)
    try:
        yield
    finally:
        _library.reset(before)


def product_backend(x: Tensor) -> str:
    """The library for a product of x with weights of its dtype (`avarc_kernels.linear`).

    Outside inference mode it is torch's, so that a loss does not depend on whether gradients are computed. In it,
    oneDNN multiplies bfloat16 wherever it can.
    """
    if not torch.is_inference_mode_enabled():
        return BY_TORCH
    return library_for(x, BY_ONEDNN if x.dtype == torch.bfloat16 else _library.get())


def library_for(x: Tensor, library: str) -> str:
    """What multiplies this tensor where that library was chosen (`Precision.library`): a backend of `linear`."""
    if library == BY_RULE:
        return BY_ONEDNN if onednn_is_faster(x) else BY_TORCH
    return library if product_missing(library, x) is None else BY_TORCH


MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def inference(method: MethodT) -> MethodT:
    """Run a method of a HasPrecision in inference mode, with the products of its precision.

    TF32 is used if and only if that is "tf32", and float32 matrices on a CPU are multiplied by its `library`.
    """

    @wraps(method)
    def run(self: HasPrecision, *args: Any, **kwargs: Any) -> Any:
        precision = self.precision
        with torch.inference_mode(), tf32(precision.name == "tf32"), products_by(precision.library):
            return method(self, *args, **kwargs)

    return cast("MethodT", run)


def onednn_is_faster(x: Tensor) -> bool:
    """Whether oneDNN is expected to multiply this tensor faster than MKL, Intel's library (docs/execution.md).

    It did so on other makers' processors with AVX-512. On Intel's both were equally fast, and without AVX-512 MKL was
    faster. This rule counts where nothing is measured, or the measurement was disturbed (`product_library`).
    """
    if onednn_missing(x) is not None or not hasattr(torch.cpu, "get_capabilities"):  # older versions of torch lack it
        return False
    cpu = torch.cpu.get_capabilities()
    return bool(cpu.get("avx512_f")) and "Intel" not in cpu["cpu_name"]


def check_gradients(precision: Precision) -> None:
    """Raises: UsageError for integers and 8-bit floats, in which a model cannot be trained."""
    if precision.quantized:
        raise UsageError(
            f"a model in {precision.name} cannot be trained",
            "its products have no gradients",
            "load it with --precision fp32 or bf16",
        )
