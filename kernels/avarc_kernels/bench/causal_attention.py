"""causal_attention against a dense mask, eager and compiled: a whole image, its last row, and grouped queries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn import functional as F

from avarc_kernels import causal_attention, testing
from avarc_kernels.bench.measure import DEVICE, HAS_GPU, WIDTHS, Case, compiled

SIDE = 24 if HAS_GPU else 8  # rows and columns of tokens
SHAPES = {"image": (SIDE * SIDE, 1), "last row": (SIDE, 1), "image, 4 queries a head": (SIDE * SIDE, 4)}


def cases(dtype: torch.dtype, *, pairs: int, sizes: list[str]) -> Iterator[Case]:
    for size in sizes:
        heads = WIDTHS[size][1]
        for name, (new, group) in SHAPES.items():
            if heads % group == 0:
                yield _case(dtype, f"{size} {name}", pairs, heads, group, new)


def _case(dtype: torch.dtype, name: str, pairs: int, heads: int, group: int, new: int) -> Case:
    total = SIDE * SIDE
    q = torch.randn(pairs, new, heads, 64, device=DEVICE).to(dtype).transpose(1, 2)
    k, v = torch.randn(2, pairs, heads // group, total, 64, device=DEVICE).to(dtype)
    mask = torch.ones(new, total, dtype=torch.bool, device=DEVICE).tril(total - new)
    attend = partial(causal_attention, q, k, v, scale=0.125)
    dense = partial(F.scaled_dot_product_attention, q, k, v, mask, scale=0.125, enable_gqa=group > 1)
    expected, bound = testing.float64_reference(testing.causal_attention, q[:1], k[:1], v[:1], 0.125)
    return Case(
        op="causal_attention",
        shape=f"{name} P={pairs} H={heads} T={new} S={total}",
        dtype=dtype,
        calls={
            "triton": partial(attend, backend="triton"),
            "torch": partial(attend, backend="torch"),
            "dense mask": dense,
            "dense mask, compiled": compiled(dense),
        },
        expected=expected,
        bound=bound,
        traffic=(q.numel() * 2 + k.numel() * 2) * dtype.itemsize,
        flops=4 * pairs * heads * 64 * int(mask.sum()),
    )
