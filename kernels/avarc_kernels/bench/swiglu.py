"""swiglu against eager and compiled PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from avarc_kernels import swiglu, testing
from avarc_kernels.bench.measure import DEVICE, Case, compiled
from avarc_kernels.bench.models import Model


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    rows, hidden = pairs * model.positions, model.hidden
    a, b = torch.randn(2, rows, hidden, device=DEVICE).to(dtype)
    definition = (testing.swiglu, a[:1], b[:1])
    expected, bound = testing.float64_reference(*definition, compute_dtype=torch.float32, result_dtype=dtype)
    yield Case(
        op="swiglu",
        shape=f"{model.name} M={rows} F={hidden}",
        dtype=dtype,
        calls={
            "triton": partial(swiglu, a, b, backend="triton"),
            "torch": partial(swiglu, a, b),
            "torch, compiled": compiled(partial(swiglu, a, b)),
        },
        expected=expected,
        bound=bound,
        traffic=3 * a.numel() * dtype.itemsize,
    )
