"""block_causal_attention against SDPA and flash-attn per segment, a dense mask, and compiled FlexAttention.

All with QK-norm, as in VAR: an implementation that cannot fuse it applies it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_kernels import block_causal_attention, testing
from avarc_kernels.bench.measure import DEVICE, HAS_GPU, Call, Case, compiled
from avarc_kernels.bench.models import Model
from avarc_kernels.block_causal_attention import qk_norm


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    scales = len(model.ends)
    for name, (first, stop) in {"all scales": (0, scales), "last": (scales - 1, scales), "first three": (0, 3)}.items():
        yield _case(dtype, name, pairs, model, first, stop)


def _case(dtype: torch.dtype, name: str, pairs: int, model: Model, first: int, stop: int) -> Case:
    heads, prefix, total = model.heads, (0, *model.ends)[first], model.ends[stop - 1]
    ends = [model.ends[k] - prefix for k in range(first, stop)]
    segments = list(pairwise([0, *ends]))
    qkv = torch.randn(3, pairs, total, heads, 64, device=DEVICE).to(dtype).transpose(2, 3)
    q, k, v = qkv[0][:, :, prefix:], qkv[1], qkv[2]
    gain = torch.linspace(2.0, 12.0, heads, device=DEVICE)
    visible = torch.tensor([prefix + end for start, end in segments for _ in range(end - start)], device=DEVICE)
    attend = partial(block_causal_attention, q, k, v, ends, scale=1.0, gain_H=gain)
    expected, bound = testing.float64_reference(testing.block_causal_attention, q[:1], k[:1], v[:1], ends, 1.0, gain)
    dense = _dense_mask(q, k, v, gain, visible)
    products = sum((end - start) * (prefix + end) for start, end in segments)
    return Case(
        op="block_causal_attention",
        shape=f"{model.name} {name} P={pairs} H={heads} T={q.shape[2]} S={total}",
        dtype=dtype,
        calls={
            "triton": lambda: attend(backend="triton"),
            "torch": lambda: attend(backend="torch"),
            "flash-attn": lambda: attend(backend="flash"),
            "dense mask": dense,
            "dense mask, compiled": compiled(dense),
            "FlexAttention": _flex_attention(q, k, v, gain, visible),
        },
        expected=expected,
        bound=bound,
        flops=4.0 * pairs * heads * 64 * products,
    )


def _dense_mask(q: Tensor, k: Tensor, v: Tensor, gain: Tensor, visible: Tensor) -> Call:
    mask = torch.arange(k.shape[2], device=DEVICE) < visible[:, None]
    return lambda: F.scaled_dot_product_attention(qk_norm(q, gain), qk_norm(k), v, attn_mask=mask, scale=1.0)


def _flex_attention(q: Tensor, k: Tensor, v: Tensor, gain: Tensor, visible: Tensor) -> Call:
    """FlexAttention, compiled when first called; its block mask is built once."""

    @cache
    def prepare() -> tuple[Callable[..., Tensor], object]:
        if not HAS_GPU:
            raise RuntimeError("compared on a GPU only")
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = create_block_mask(
            lambda b, h, t, s: s < visible[t], None, None, q.shape[2], k.shape[2], device=str(q.device)
        )
        return torch.compile(flex_attention, dynamic=False), mask

    def call() -> Tensor:
        attend, mask = prepare()
        return attend(qk_norm(q, gain), qk_norm(k), v, block_mask=mask, scale=1.0)

    return call
