"""linear_gelu against eager and compiled PyTorch, and cuBLASLt's own epilogue."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from avarc_kernels import linear_gelu, testing
from avarc_kernels.bench.measure import CHECKED_ROWS, DEVICE, Case, compiled
from avarc_kernels.bench.models import Model


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    rows, width = pairs * model.positions, model.width
    x = torch.randn(rows, width, device=DEVICE).to(dtype)
    weight = (torch.randn(4 * width, width, device=DEVICE) / width**0.5).to(dtype)
    bias = torch.randn(4 * width, device=DEVICE).to(dtype)
    args = (x, weight, bias)
    expected, bound = testing.float64_reference(testing.linear_gelu, x[:CHECKED_ROWS], weight, bias)
    yield Case(
        op="linear_gelu",
        shape=f"{model.name} M={rows} C={width} F={4 * width}",
        dtype=dtype,
        calls={
            "triton": partial(linear_gelu, *args, backend="triton"),
            "torch": partial(linear_gelu, *args),
            "torch, compiled": compiled(partial(linear_gelu, *args)),
            "cuBLASLt": partial(linear_gelu, *args, backend="cublaslt"),
        },
        expected=expected,
        bound=bound,
        flops=8.0 * rows * width * width,
    )
