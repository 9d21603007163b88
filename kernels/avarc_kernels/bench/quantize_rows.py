"""quantize_rows against eager and compiled PyTorch. The error is the largest difference between codes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from avarc_kernels import quantize_rows
from avarc_kernels.bench.measure import DEVICE, HAS_GPU, Case, compiled
from avarc_kernels.bench.models import Model


def codes(x: Tensor, to: torch.dtype, backend: str) -> Tensor:
    """The quantized rows without their scales."""
    return quantize_rows(x, to, backend=backend)[0]


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    rows, width = pairs * model.positions, model.width
    # The interpreter does not round to float8 as a GPU does.
    for to in (torch.int8, torch.float8_e4m3fn) if HAS_GPU else (torch.int8,):
        x = torch.randn(rows, width, device=DEVICE).to(dtype)
        yield Case(
            op="quantize_rows",
            shape=f"{model.name} to {str(to).removeprefix('torch.')} M={rows} C={width}",
            dtype=dtype,
            calls={
                "triton": partial(codes, x, to, "triton"),
                "torch": partial(codes, x, to, "torch"),
                "torch, compiled": compiled(partial(codes, x, to, "torch")),
            },
            expected=codes(x, to, "torch"),
            bound=0.0,
            traffic=x.numel() * (dtype.itemsize + 1),
        )
