"""causal_attention against flash-attn and a dense mask, eager and compiled.

Of a whole image, of its last segment, and with grouped queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn import functional as F

from avarc_kernels import causal_attention, testing
from avarc_kernels.bench.measure import DEVICE, Case, compiled
from avarc_kernels.bench.models import Model


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    yield _case(dtype, "image", pairs, model, model.positions)
    yield _case(dtype, "last segment", pairs, model, model.new)
    if model.grouped:
        yield _case(dtype, "image, 2 queries a head", pairs, model, model.positions, group=2)


def _case(dtype: torch.dtype, name: str, pairs: int, model: Model, new: int, *, group: int = 1) -> Case:
    heads, width, total = model.heads, model.head_width, model.positions
    scale = width**-0.5
    q = torch.randn(pairs, new, heads, width, device=DEVICE).to(dtype).transpose(1, 2)
    k, v = torch.randn(2, pairs, heads // group, total, width, device=DEVICE).to(dtype)
    mask = torch.ones(new, total, dtype=torch.bool, device=DEVICE).tril(total - new)
    attend = partial(causal_attention, q, k, v, scale=scale)
    dense = partial(F.scaled_dot_product_attention, q, k, v, mask, scale=scale, enable_gqa=group > 1)
    expected, bound = testing.float64_reference(testing.causal_attention, q[:1], k[:1], v[:1], scale)
    return Case(
        op="causal_attention",
        shape=f"{model.name} {name} P={pairs} H={heads} D={width} T={new} S={total}",
        dtype=dtype,
        calls={
            "triton": partial(attend, backend="triton"),
            "torch": partial(attend, backend="torch"),
            "flash-attn": partial(attend, backend="flash"),
            "dense mask": dense,
            "dense mask, compiled": compiled(dense),
        },
        expected=expected,
        bound=bound,
        traffic=(q.numel() * 2 + k.numel() * 2) * dtype.itemsize,
        flops=4 * pairs * heads * width * int(mask.sum()),
    )
