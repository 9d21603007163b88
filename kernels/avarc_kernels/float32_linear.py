"""A linear layer in float32 on x86 CPUs with AVX2, where the libraries that PyTorch ships are slower.

Their products are divided among threads beforehand, in equal parts, and weights are copied before they are multiplied.
Here a thread takes the next part when it is ready, so a core that other programs use holds up no other, and a part of
the weight is copied into a core's cache just before it is used.

Shapes: M rows, K input channels, N output channels.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from avarc_kernels import c_library

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O2", "-std=c11", "-ffp-contract=fast")  # a product and a sum become one instruction


def missing(x: Tensor) -> str | None:
    """Why `float32_linear` cannot multiply this tensor; None when it can."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return f"it is for float32 on a CPU, and the tensor is {x.dtype} on {x.device.type}"
    built = _build()
    return built if isinstance(built, str) else None


def float32_linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """x @ weight.T + bias, float32, where `missing` says nothing against it.

    Returns: (M, N). A row depends on no other row, nor on the number of threads: 256 channels are added up at a time,
        one after another with one rounding each, and then the sums of these.
    """
    library = _build()
    if isinstance(library, str):
        raise ValueError(f"avarc's own products cannot run: {library}")
    (M, K), N = x_MK.shape, len(weight_NK)
    bias_N = x_MK.new_zeros(N) if bias_N is None else bias_N.contiguous()
    if K == 0:
        return bias_N.repeat(M, 1)
    y_MN = x_MK.new_empty(M, N)
    scratch = x_MK.new_empty(-(-M // library.rows()) * library.rows(), min(K, library.depth()))
    tensors = (x_MK.contiguous(), weight_NK.contiguous(), bias_N, y_MN, scratch)
    library.linear(*(tensor.data_ptr() for tensor in tensors), M, N, K, torch.get_num_threads())
    return y_MN


@cache
def _build() -> ctypes.CDLL | str:
    """float32_linear.c, compiled, or why that is not possible."""
    built = c_library.build(SOURCE, *FLAGS)
    if isinstance(built, ctypes.CDLL):
        built.linear.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_long] * 3 + [ctypes.c_int]
        built.linear.restype = None
    return built
