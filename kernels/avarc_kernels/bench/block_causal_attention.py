"""block_causal_attention against SDPA and flash-attn by segments, a dense mask, and compiled FlexAttention.

All with QK-norm, as VAR has it: whoever cannot fuse it does it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_kernels import block_causal_attention
from avarc_kernels.bench.measure import DEVICE, HAS_GPU, SIDES, WIDTHS, Case, against, compiled
from avarc_kernels.block_causal_attention import unit_length

ENDS = tuple(accumulate(p * p for p in SIDES))
PARTS = {
    "all scales": (0, len(SIDES)),
    "last scale": (len(SIDES) - 1, len(SIDES)),
    "first three": (0, 3),
}  # that are new


def masked(q: Tensor, k: Tensor, v: Tensor, gain: Tensor, seen: Tensor) -> Tensor:
    """The definition: all products, a mask, a softmax."""
    products = unit_length(q, gain) @ unit_length(k).mT
    return products.masked_fill(~seen, -torch.inf).softmax(-1) @ v


def flex(q: Tensor, k: Tensor, v: Tensor, gain: Tensor, limit_T: Tensor) -> Callable[[], Tensor]:
    """FlexAttention, compiled, with the block mask made beforehand."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(
        lambda b, h, t, s: s < limit_T[t], None, None, q.shape[2], k.shape[2], device=str(q.device)
    )
    attend = torch.compile(flex_attention, dynamic=False)
    return lambda: attend(unit_length(q, gain), unit_length(k), v, block_mask=mask, scale=1.0)


def cases(dtype: torch.dtype, *, pairs: int, sizes: list[str]) -> Iterator[Case]:
    for size in sizes:
        heads = WIDTHS[size][1]
        for part, (first, stop) in PARTS.items():
            yield _case(dtype, size, part, pairs, heads, first, stop)


def _case(dtype: torch.dtype, size: str, part: str, pairs: int, heads: int, first: int, stop: int) -> Case:
    prefix, total = (0, *ENDS)[first], ENDS[stop - 1]
    ends = [ENDS[k] - prefix for k in range(first, stop)]
    qkv = torch.randn(3, pairs, total, heads, 64, device=DEVICE).to(dtype).transpose(2, 3)
    q, k, v = qkv[0][:, :, prefix:], qkv[1], qkv[2]
    gain = torch.linspace(2.0, 12.0, heads, device=DEVICE)
    limit = torch.tensor([prefix + e for s, e in pairwise([0, *ends]) for _ in range(e - s)], device=DEVICE)
    seen = torch.arange(total, device=DEVICE)[None, :] < limit[:, None]
    attend = partial(block_causal_attention, q, k, v, ends, scale=1.0, gain_H=gain)
    few = (q[:1], k[:1], v[:1])
    exact = masked(few[0].double(), few[1].double(), few[2].double(), gain.double(), seen)

    def dense() -> Tensor:
        return F.scaled_dot_product_attention(unit_length(q, gain), unit_length(k), v, attn_mask=seen, scale=1.0)

    flex_call: list[Callable[[], Tensor]] = []

    def flex_attention() -> Tensor:
        if not HAS_GPU:
            raise RuntimeError("compared on a GPU only")
        if not flex_call:
            flex_call.append(flex(q, k, v, gain, limit))
        return flex_call[0]()

    products = sum((e - s) * (prefix + e) for s, e in pairwise([0, *ends]))
    return Case(
        op="block_causal_attention",
        shape=f"{size} {part} P={pairs} H={heads} T={q.shape[2]} S={total}",
        dtype=dtype,
        calls={
            "triton": lambda: attend(backend="triton"),
            "torch": lambda: attend(backend="torch"),
            "flash-attn": lambda: attend(backend="flash"),
            "dense mask": dense,
            "dense mask, compiled": compiled(dense),
            "FlexAttention": flex_attention,
        },
        check=against(exact, masked(*few, gain, seen)),
        flops=4.0 * pairs * heads * 64 * products,
    )
