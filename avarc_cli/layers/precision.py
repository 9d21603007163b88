"""The precisions that a transformer's linears can run in, and the linears that multiply 8-bit numbers.

An 8-bit product has one scale a row of the input (a token) and one a row of the weight (an output channel), so that
what a token scores does not depend on the tokens beside it. The scales multiply the sums, which are exact in int8.

Shapes: M tokens, K channels in, N channels out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.errors import UsageError
from avarc_kernels import quantize_rows

FP8_CAPABILITY = (8, 9)  # the first CUDA devices that multiply float8
CACHED = 1 << 16  # numbers of a thread that one step after another goes over: they stay in a core's cache
CHANNELS = 16  # CUDA's 8-bit products want channels in multiples of this
INT_MM_ROWS = 17  # and more rows than 16


@dataclass(frozen=True)
class Precision:
    """How the blocks compute.

    activations: dtype of what goes into the linears and comes out; product: dtype of the numbers that they multiply;
    attention: dtype of queries, keys and values.
    Norms, residual stream, class modulation and sums of log-probabilities are float32 in every precision, and on a CPU
    the head.
    """

    name: str
    activations: torch.dtype
    product: torch.dtype
    attention: torch.dtype

    @property
    def quantized(self) -> bool:
        """Whether the numbers multiplied have scales of their own."""
        return self.product in (torch.int8, torch.float8_e4m3fn)


_PLAIN = (
    ("fp32", torch.float32),
    ("tf32", torch.float32),
    ("bf16", torch.bfloat16),
    ("fp16", torch.float16),
)
FP32 = Precision("fp32", torch.float32, torch.float32, torch.float32)
PRECISIONS = {name: Precision(name, dtype, dtype, dtype) for name, dtype in _PLAIN} | {
    "int8": Precision("int8", torch.float32, torch.int8, torch.float32),
    "fp8": Precision("fp8", torch.bfloat16, torch.float8_e4m3fn, torch.bfloat16),
}


def find(name: str, device: torch.device) -> Precision:
    """The precision of this name, as this device computes it.

    Raises: UsageError for an unknown one, or one that the device does not have.
    """
    if name not in PRECISIONS:
        raise UsageError(f"no precision '{name}'", f"there are {', '.join(PRECISIONS)}")
    why = missing(name, device)
    if why is not None:
        raise UsageError(f"{name} is not to be had on {device}", why, "use --precision fp32; avarc doctor tells more")
    if name == "int8" and device.type == "cuda":
        return Precision("int8", torch.bfloat16, torch.int8, torch.bfloat16)
    if name == "int8" and cpu_has_bf16():
        return replace(PRECISIONS["int8"], attention=torch.bfloat16)
    return PRECISIONS[name]


def missing(name: str, device: torch.device) -> str | None:
    """What the device lacks for this precision; None when nothing."""
    if name in ("tf32", "fp8") and device.type != "cuda":
        return f"{name} needs a CUDA device"
    if name == "fp8" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return "its compute capability is below 8.9"
    if name == "int8" and device.type == "cpu" and "onednn" not in torch.backends.quantized.supported_engines:
        return "this PyTorch was built without oneDNN, whose int8 products we use"
    if name == "int8" and device.type not in ("cpu", "cuda"):
        return "its 8-bit products are written for cpu and cuda"
    return None


def arithmetic(precision: Precision, device: torch.device) -> str:
    """What is computed how, in words: it depends on the processor too, and so do the numbers."""
    dtypes = {
        "products": precision.product,
        "activations": precision.activations,
        "attention": precision.attention,
    }
    words = [f"{what} {str(dtype).removeprefix('torch.')}" for what, dtype in dtypes.items()]
    if precision.name == "int8" and device.type == "cpu" and not cpu_has_vnni():
        words.append("weights of 7 bits")
    return ", ".join(words)


def available(device: torch.device) -> tuple[str, ...]:
    """The precisions that the device has, in the order of PRECISIONS."""
    return tuple(name for name in PRECISIONS if missing(name, device) is None)


def cpu_has_vnni() -> bool:
    """Whether the CPU adds four 8-bit products in 32 bits (AVX512-VNNI), as torch sees it."""
    return bool(torch.cpu._is_vnni_supported())


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers itself (AVX512-BF16 or AMX), as torch sees it."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def linear(layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """`layer` on `x` in the layer's own dtype; `bias` in place of the layer's own, where it has none."""
    if isinstance(layer, QuantizedLinear):
        return layer(x, bias)
    plain = cast("nn.Linear", layer)
    return F.linear(x.to(plain.weight.dtype), plain.weight, plain.bias if bias is None else bias)


def quantized(layer: nn.Linear, precision: Precision) -> QuantizedLinear:
    """The layer with 8-bit products, for the device that its weight is on.

    Raises: UsageError for widths that the device's products do not take.
    """
    if layer.weight.device.type == "cuda" and any(n % CHANNELS for n in layer.weight.shape):
        raise UsageError(
            f"a linear of {tuple(layer.weight.shape)} channels cannot run in 8 bits on CUDA",
            f"the GPU's 8-bit products want multiples of {CHANNELS}",
            "use --precision bf16",
        )
    if precision.product == torch.float8_e4m3fn:
        return Float8Linear(layer, precision.activations)
    kind = Int8Linear if layer.weight.device.type == "cuda" else Int8LinearCPU
    return kind(layer, precision.activations)


class QuantizedLinear(nn.Module):
    """A linear that multiplies 8-bit numbers.

    It keeps the weight it was made from: a class bank's low-rank changes add to that. kernels: which `quantize_rows`
    runs, "torch" or "triton".
    """

    kernels = "torch"

    def __init__(self, layer: nn.Linear, activations: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().to(activations), requires_grad=False)
        bias = cast("nn.Parameter | None", layer.bias)  # torch's annotation says there always is one
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(activations), requires_grad=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) -> (..., N) in the activations' dtype."""
        x_MK = x.flatten(0, -2).contiguous()
        return self.product(x_MK, self.bias if bias is None else bias).unflatten(0, x.shape[:-1])

    def product(self, x_MK: Tensor, bias_N: Tensor | None) -> Tensor:
        raise NotImplementedError


class Int8LinearCPU(QuantizedLinear):
    """int8 through oneDNN and FBGEMM, which PyTorch ships.

    A row of the input becomes bytes, x = min + step * byte, in one pass; then

        y = step * (bytes @ W.T) + min * (sum of W's row) + bias

    Without VNNI, x86 adds pairs of byte products in 16 bits, which overflow silently; 7-bit weights cannot.
    """

    packed: Tensor
    scale_N: Tensor
    sum_N: Tensor

    def __init__(self, layer: nn.Linear, activations: torch.dtype) -> None:
        super().__init__(layer, activations)
        levels = 127 if cpu_has_vnni() else 63
        weight_NK = layer.weight.detach().float()
        scale_N = weight_NK.abs().amax(1).clamp_min(1e-30) / levels
        bytes_NK = (weight_NK / scale_N[:, None]).round_().to(torch.int8)
        self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(bytes_NK, None), persistent=False)
        self.register_buffer("scale_N", scale_N, persistent=False)
        self.register_buffer("sum_N", bytes_NK.sum(1) * scale_N, persistent=False)
        self.register_buffer("zeros_N", torch.zeros(len(scale_N), dtype=torch.int32), persistent=False)

    def product(self, x_MK: Tensor, bias_N: Tensor | None) -> Tensor:
        if len(x_MK) == 0:
            return self.scale_N.new_empty(0, len(self.scale_N))
        rows = torch.ops.quantized.embedding_bag_byte_prepack(x_MK.float())  # K bytes, then step and min as float32
        channels = x_MK.shape[1]
        step_M1, min_M1 = rows[:, channels:].contiguous().view(torch.float32).split(1, dim=1)
        y_MN = torch.ops.onednn.qlinear_pointwise(
            *(rows[:, :channels].contiguous(), 1.0, 0),
            *(self.packed, self.scale_N, self.zeros_N, None),
            *(1.0, 0, torch.float32, "none", [], ""),  # output scale and zero point, dtype, nothing fused
        )
        bias_N = torch.zeros_like(self.scale_N) if bias_N is None else bias_N
        at_once = max(1, CACHED * torch.get_num_threads() // len(self.scale_N))
        for y, step_m1, min_m1 in zip(*(t.split(at_once) for t in (y_MN, step_M1, min_M1)), strict=True):
            torch.addcmul(torch.addcmul(bias_N, min_m1, self.sum_N), y, step_m1, out=y)
        return y_MN


class Int8Linear(QuantizedLinear):
    """int8 through torch._int_mm (cuBLASLt): symmetric scales on both sides, sums in int32."""

    bytes_KN: Tensor
    scale_N: Tensor

    def __init__(self, layer: nn.Linear, activations: torch.dtype) -> None:
        super().__init__(layer, activations)
        bytes_NK, scale_N = quantize_rows(layer.weight.detach(), torch.int8)
        self.register_buffer("bytes_KN", bytes_NK.contiguous().T, persistent=False)
        self.register_buffer("scale_N", scale_N, persistent=False)

    def product(self, x_MK: Tensor, bias_N: Tensor | None) -> Tensor:
        bytes_MK, scale_M = quantize_rows(x_MK, torch.int8, backend=self.kernels)
        lacking = max(0, INT_MM_ROWS - len(bytes_MK))
        sums_MN = torch._int_mm(F.pad(bytes_MK, (0, 0, 0, lacking)), self.bytes_KN)[: len(bytes_MK)]
        y_MN = (sums_MN * scale_M[:, None]).mul_(self.scale_N)
        return (y_MN if bias_N is None else y_MN.add_(bias_N)).to(x_MK.dtype)


class Float8Linear(QuantizedLinear):
    """float8_e4m3fn through torch._scaled_mm, sums in float32, scaled by row and by column."""

    float8_NK: Tensor
    scale_N: Tensor

    def __init__(self, layer: nn.Linear, activations: torch.dtype) -> None:
        super().__init__(layer, activations)
        float8_NK, scale_N = quantize_rows(layer.weight.detach(), torch.float8_e4m3fn)
        self.register_buffer("float8_NK", float8_NK, persistent=False)
        self.register_buffer("scale_N", scale_N, persistent=False)

    def product(self, x_MK: Tensor, bias_N: Tensor | None) -> Tensor:
        float8_MK, scale_M = quantize_rows(x_MK, torch.float8_e4m3fn, backend=self.kernels)
        y_MN: Tensor = torch._scaled_mm(
            float8_MK,
            self.float8_NK.T,
            scale_a=scale_M[:, None],
            scale_b=self.scale_N[None],
            bias=None if bias_N is None else bias_N.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=x_MK.device.type == "cuda",
        )
        return y_MN
