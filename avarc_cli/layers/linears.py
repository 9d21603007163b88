"""The linears of transformers, in any precision, and those that multiply integers or 8-bit floats.

These have one scale per row of the input (a token) and one per row of the weight (an output channel), so that a token's
score does not depend on the other tokens of its batch. The scales multiply the sums, which are exact for integers.

Shapes: M tokens, K input channels, N output channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.errors import UsageError
from avarc_cli.layers.mapped import give_back
from avarc_cli.layers.precision import Precision, cpu_has_bf16, cpu_has_vnni, product_backend
from avarc_cli.layers.stored import plain
from avarc_kernels import quantize_rows
from avarc_kernels.int16_linear import Int16Weight, int16_linear, pack
from avarc_kernels.linear import linear as product
from avarc_kernels.linear import onednn_missing, packed

# Numbers per thread that successive elementwise steps process at a time, so that they stay in a core's cache. This was
# the fastest of 2^12 to 2^23 for the GELU of 2048 x 4096 numbers on one thread of a Xeon (2 MiB of L2): 13 ms, against
# 50 ms in one piece.
CACHED = 1 << 16
CHANNELS = 16  # torch._scaled_mm requires channels in multiples of 16, torch._int_mm of 8
INT_MM_ROWS = 17  # torch._int_mm requires more than 16 rows


def linear(layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """`layer` on `x` in the layer's dtype, with `bias` if given instead of the layer's own, by `product_backend`."""
    if isinstance(layer, QuantizedLinear | CalledLinear):
        return layer(x, bias)
    own = cast("nn.Linear", layer)
    weight, bias = own.weight, own.bias if bias is None else bias
    x = x.to(weight.dtype)
    chosen = product_backend(x)
    if chosen == "torch":  # as `product`, but a training of a small model would notice its checks
        return F.linear(x, plain(weight), bias)
    return product(x, weight, bias, backend=chosen)


class CalledLinear(nn.Linear):
    """A linear whose weight is there only while it is called, in a training that divides weights among processes."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """As `linear`."""
        return product(x.to(self.weight.dtype), self.weight, self.bias if bias is None else bias, backend="torch")


def log_prob_backend(kernels: str, hidden: Tensor) -> str:
    """The backend of `linear_log_prob` for a model with these kernels and these last hidden states."""
    return "triton" if kernels.endswith("triton") else product_backend(hidden)


def quantized(layer: nn.Linear, precision: Precision) -> QuantizedLinear:
    """The layer as one that multiplies the numbers of this precision, for the device that its weight is on.

    Raises: UsageError for numbers of channels that the device's products do not support.
    """
    if layer.weight.device.type == "cuda" and any(n % CHANNELS for n in layer.weight.shape):
        raise UsageError(
            f"a linear of {tuple(layer.weight.shape)} channels cannot run in 8 bits on CUDA",
            f"the GPU's 8-bit products require multiples of {CHANNELS}",
            "use --precision bf16",
        )
    if precision.product == torch.float8_e4m3fn:
        return Float8Linear(layer, precision.activations)
    if precision.product == torch.int16:
        return Int16Linear(layer, precision.activations)
    kind = Int8Linear if layer.weight.device.type == "cuda" else Int8LinearCPU
    return kind(layer, precision.activations)


def convert_linears(block: nn.Module, names: Iterable[str], precision: Precision) -> None:
    """Run the linears of these names inside a block in this precision.

    The memory of weights that are mapped from a file is given back as soon as they are converted. Those in bfloat16 on
    a CPU with such products are `packed`, and kept in no other layout.

    Raises: as `quantized`.
    """
    for name in names:
        owner, _, attribute = name.rpartition(".")
        module = block.get_submodule(owner)
        layer = getattr(module, attribute)
        before = layer.weight.detach()
        if precision.product in (before.dtype, getattr(layer, "multiplied", None)):
            continue  # nothing to convert; low-rank changes of it stay float32
        converted = quantized(layer, precision) if precision.quantized else layer.to(precision.product)
        setattr(module, attribute, converted)
        give_back(before)
        if isinstance(converted, nn.Linear) and _packs(converted.weight):
            _pack(converted)


@contextmanager
def plain_weights(network: nn.Module) -> Iterator[None]:
    """Inside, no weight of the network is packed, as gradients need rows and columns; afterwards they are again."""
    own = {module: module._parameters.get("weight") for module in network.modules() if isinstance(module, nn.Linear)}
    layers = [layer for layer, weight in own.items() if weight is not None and weight.is_mkldnn]
    for layer in layers:
        layer.weight = nn.Parameter(plain(layer.weight), requires_grad=False)
    try:
        yield
    finally:
        for layer in layers:
            _pack(layer)


def _packs(weight: Tensor) -> bool:
    return weight.dtype == torch.bfloat16 and onednn_missing(weight) is None and cpu_has_bf16()


def _pack(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(packed(layer.weight.detach()), requires_grad=False)


class QuantizedLinear(nn.Module, ABC):
    """A linear that multiplies integers or 8-bit floats.

    It keeps the weight that it was made from, because low-rank changes of a class bank are added to that weight.
    """

    multiplied: torch.dtype
    """Of the numbers that it multiplies."""
    kernels = "torch"
    """Of which `quantize_rows` takes its implementation (`layers.kernels`)."""

    def __init__(self, layer: nn.Linear, activations: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().to(activations), requires_grad=False)
        bias = cast("nn.Parameter | None", layer.bias)  # torch's annotation says there always is one
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(activations), requires_grad=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) -> (..., N) in the activations' dtype."""
        x_MK = x.flatten(0, -2).contiguous()
        return self.product(x_MK, self.bias if bias is None else bias).unflatten(0, x.shape[:-1])

    @abstractmethod
    def product(self, x_MK: Tensor, bias_N: Tensor | None) -> Tensor:
        """x W^T + b, (M, N), in the dtype of x."""


class Int16Linear(QuantizedLinear):
    """int16 on a CPU, by our own product (`avarc_kernels.int16_linear`)."""

    multiplied = torch.int16
    packed: Tensor
    scale_N: Tensor

    def __init__(self, layer: nn.Linear, activations: torch.dtype) -> None:
        super().__init__(layer, activations)
        weight = pack(layer.weight.detach().float())
        self.levels, self.channels = weight.levels, weight.channels
        self.register_buffer("packed", weight.packed, persistent=False)
        self.register_buffer("scale_N", weight.scale_N, persistent=False)

    def product(self, x_MK: Tensor, bias_N: Tensor | None) -> Tensor:
        weight = Int16Weight(self.packed, self.scale_N, self.levels, self.channels)
        return int16_linear(x_MK, weight, bias_N)


class Int8LinearCPU(QuantizedLinear):
    """int8 through oneDNN and FBGEMM, which PyTorch ships.

    A row of the input is quantized to bytes, x = min + step * byte, in one pass. Then

        y = step * (bytes @ W.T) + min * (sum of W's row) + bias

    Without VNNI, x86 adds pairs of byte products in 16 bits. These sums overflow silently with 8-bit weights, so the
    weights have 7 bits there.
    """

    multiplied = torch.int8
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
        y_MN = self.multiply(rows[:, :channels].contiguous())
        bias_N = torch.zeros_like(self.scale_N) if bias_N is None else bias_N
        at_once = max(1, CACHED * torch.get_num_threads() // len(self.scale_N))
        for y, step_m1, min_m1 in zip(*(t.split(at_once) for t in (y_MN, step_M1, min_M1)), strict=True):
            torch.addcmul(torch.addcmul(bias_N, min_m1, self.sum_N), y, step_m1, out=y)
        return y_MN

    def multiply(self, bytes_MK: Tensor) -> Tensor:
        """bytes @ W.T, uint8 (M, K) -> (M, N) float32."""
        y_MN: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(bytes_MK, 1.0, 0),
            *(self.packed, self.scale_N, self.zeros_N, None),
            *(1.0, 0, torch.float32, "none", [], ""),  # output scale and zero point, dtype, nothing fused
        )
        return y_MN


class Int8Linear(QuantizedLinear):
    """int8 through torch._int_mm (cuBLASLt): symmetric scales on both sides, sums in int32."""

    multiplied = torch.int8
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

    multiplied = torch.float8_e4m3fn
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
