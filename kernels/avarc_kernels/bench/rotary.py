"""rotary, of queries and keys side by side, against eager and compiled PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from avarc_kernels import rotary, testing
from avarc_kernels.bench.measure import DEVICE, Case, compiled
from avarc_kernels.bench.models import Model


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    heads, length, width = 2 * model.heads, model.positions, model.head_width
    x = torch.randn(pairs, length, heads, width, device=DEVICE).to(dtype)
    angle = torch.randn(length, width // 2, device=DEVICE)
    table = torch.stack([angle.cos(), angle.sin()], dim=-1)
    definition = (testing.rotary, x[:1], table)
    expected, bound = testing.float64_reference(*definition, compute_dtype=torch.float32, result_dtype=dtype)
    yield Case(
        op="rotary",
        shape=f"{model.name} P={pairs} T={length} H={heads} D={width}",
        dtype=dtype,
        calls={
            "triton": partial(rotary, x, table, backend="triton"),
            "torch": partial(rotary, x, table),
            "torch, compiled": compiled(partial(rotary, x, table)),
        },
        expected=expected,
        bound=bound,
        traffic=2 * x.numel() * dtype.itemsize,
    )
