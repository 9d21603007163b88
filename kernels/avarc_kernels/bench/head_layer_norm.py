"""head_layer_norm, of queries, against eager and compiled PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from avarc_kernels import head_layer_norm, testing
from avarc_kernels.bench.measure import DEVICE, Case, compiled
from avarc_kernels.bench.models import Model

EPS = 1e-6


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    heads, length, width = model.heads, model.positions, model.head_width
    x = torch.randn(pairs, length, 3, heads, width, device=DEVICE).to(dtype)[:, :, 0]  # beside keys and values
    weight, bias = torch.randn(2, width, device=DEVICE)
    definition = (testing.head_layer_norm, x[:1], weight, bias, EPS)
    expected, bound = testing.float64_reference(*definition, compute_dtype=torch.float32, result_dtype=dtype)
    norm = partial(head_layer_norm, x, weight, bias, eps=EPS)
    yield Case(
        op="head_layer_norm",
        shape=f"{model.name} P={pairs} T={length} H={heads} D={width}",
        dtype=dtype,
        calls={"triton": partial(norm, backend="triton"), "torch": norm, "torch, compiled": compiled(norm)},
        expected=expected,
        bound=bound,
        traffic=2 * x.numel() * dtype.itemsize,
    )
