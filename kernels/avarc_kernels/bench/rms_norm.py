"""residual_rms_norm against eager and compiled PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from avarc_kernels import residual_rms_norm, testing
from avarc_kernels.bench.measure import DEVICE, Case, compiled
from avarc_kernels.bench.models import Model

EPS = 1e-5


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    width, length = model.width, model.positions
    x = torch.randn(pairs, length, width, device=DEVICE)  # the stream is float32 in every precision
    y = torch.randn(pairs, length, width, device=DEVICE).to(dtype)
    weight = torch.randn(width, device=DEVICE)
    yield _case(f"{model.name} P={pairs} T={length} C={width}", dtype, x, y, weight)


def _case(shape: str, dtype: torch.dtype, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> Case:
    def normed(backend: str) -> torch.Tensor:
        return residual_rms_norm(x, y, weight, eps=EPS, dtype=dtype, backend=backend)[1]

    stream = x[:1] + y[:1].float()
    expected, bound = testing.float64_reference(testing.rms_norm, stream, weight, EPS, result_dtype=dtype)
    return Case(
        op="residual_rms_norm",
        shape=shape,
        dtype=dtype,
        calls={
            "triton": lambda: normed("triton"),
            "torch": lambda: normed("torch"),
            "torch, compiled": compiled(lambda: normed("torch")),
        },
        expected=expected,
        bound=bound,
        traffic=x.numel() * (8 + 2 * dtype.itemsize),
    )
