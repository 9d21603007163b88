"""A linear layer by products of 16-bit integers, for CPUs without bfloat16 products.

An instruction of AVX2 multiplies twice as many 16-bit integers as float32 numbers, and adds them in pairs. PyTorch has
no such product, so a C compiler builds int16_linear.c when a process first uses it, in half a second.

Shapes: M rows, K input channels, N output channels.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from avarc_kernels import c_library

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-std=c11", "-ffp-contract=off")
WEIGHT_LEVELS = 4095  # what the largest magnitude of an output channel's weights becomes
AT_ONCE = 512
"""Input channels whose products are added in 32 bits; the sums of more are added in float32. Fewer would allow inputs
more levels, and convert more sums."""


@dataclass(frozen=True)
class Int16Weight:
    """A weight as `int16_linear` multiplies by it."""

    packed: Tensor
    """Integers, int16, padded with zeros to (columns, even channels) and reordered to (panels of columns, pairs of
    channels, columns of a panel, 2)."""
    scale_N: Tensor
    """Of each output channel, float32."""
    levels: float
    """What the largest magnitude of a row of inputs becomes. With it, no sum of `AT_ONCE` products overflows 32 bits,
    whatever the inputs are."""
    channels: int
    """K."""


def missing() -> str | None:
    """Why `int16_linear` cannot run on this machine; None when it can."""
    built = _build()
    return built if isinstance(built, str) else None


def pack(weight_NK: Tensor) -> Int16Weight:
    """The weight as `int16_linear` multiplies by it: integers times a scale of each output channel.

    Args:
        weight_NK: float32 on a CPU, at least one channel each.
    Raises: ValueError for another tensor, or where it cannot run.
    """
    if not _is_float32(weight_NK) or weight_NK.ndim != 2 or weight_NK.numel() == 0:
        raise ValueError(f"a weight is a matrix of float32 on a CPU, not {_described(weight_NK)}")
    width, (N, K) = _library().columns(), weight_NK.shape
    scale_N = weight_NK.abs().amax(1).clamp_min(1e-30) / WEIGHT_LEVELS
    integers = weight_NK.new_zeros(_up_to(N, width), _up_to(K, 2), dtype=torch.int16)
    integers[:N, :K] = (weight_NK / scale_N[:, None]).round_()
    largest = max(int(part.abs().sum(1, dtype=torch.int32).max()) for part in integers.split(AT_ONCE, dim=1))
    packed = integers.view(-1, width, integers.shape[1] // 2, 2).transpose(1, 2).contiguous()
    levels = min(2**15 - 1, (2**31 - 1) // max(1, largest))
    return Int16Weight(packed.view(integers.shape), scale_N, float(levels), K)


def int16_linear(x_MK: Tensor, weight: Int16Weight, bias_N: Tensor | None) -> Tensor:
    """x @ weight.T + bias, where each row of x becomes integers, too, times a scale of its own.

    Args:
        x_MK: float32 on a CPU.
        weight: of `pack`.
        bias_N: float32.
    Returns: (M, N) float32. A row depends on no other row, and is NaN if a number of its input is not finite.
    Raises: ValueError when shapes or dtypes disagree, when an input requires gradients, or where it cannot run.
    """
    library, packed, N = _library(), weight.packed, len(weight.scale_N)
    bias_N = x_MK.new_zeros(N) if bias_N is None else bias_N
    for what, tensor in (("x", x_MK), ("the weight's scale", weight.scale_N), ("the bias", bias_N)):
        if not _is_float32(tensor):
            raise ValueError(f"{what} is float32 on a CPU, not {_described(tensor)}")
    if x_MK.ndim != 2 or x_MK.shape[1] != weight.channels or bias_N.shape != (N,):
        of = f"a weight of {N} by {weight.channels} channels"
        raise ValueError(f"x {tuple(x_MK.shape)}, bias {tuple(bias_N.shape)}, and {of}")
    columns, K = _up_to(N, library.columns()), _up_to(weight.channels, 2)
    as_packed = packed.dtype == torch.int16 and packed.device.type == "cpu" and packed.is_contiguous()
    if not as_packed or packed.shape != (columns, K):
        raise ValueError(f"the weight is not as `pack` made it, but {_described(packed)}")
    if torch.is_grad_enabled() and (x_MK.requires_grad or bias_N.requires_grad):
        raise ValueError("there are no gradients here: score under torch.no_grad() or torch.inference_mode()")
    x_MK, M = x_MK.contiguous(), len(x_MK)
    scale, bias = (functional.pad(t, (0, columns - N)).contiguous() for t in (weight.scale_N, bias_N))
    y, scale_M = x_MK.new_empty(M, columns), x_MK.new_empty(M)
    integers = x_MK.new_empty(_up_to(M, library.rows()), K, dtype=torch.int16)
    pointers = (t.data_ptr() for t in (x_MK, packed, scale, bias, y, integers, scale_M))
    library.linear(*pointers, M, columns, K, weight.channels, weight.levels, torch.get_num_threads())
    return y[:, :N].contiguous()


def _is_float32(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _up_to(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _library() -> ctypes.CDLL:
    """Raises: ValueError where it cannot be built."""
    built = _build()
    if isinstance(built, str):
        raise ValueError(f"products of 16-bit integers cannot run: {built}")
    return built


@cache
def _build() -> ctypes.CDLL | str:
    """int16_linear.c, compiled, or why that is not possible."""
    built = c_library.build(SOURCE, *FLAGS, f"-DAT_ONCE={AT_ONCE}")
    if isinstance(built, ctypes.CDLL):
        pointer, size = ctypes.c_void_p, ctypes.c_long
        built.linear.argtypes = [pointer] * 7 + [size] * 4 + [ctypes.c_float, ctypes.c_int]
        built.linear.restype = None
    return built
