"""A stand-in for flash-attn on the CPU: the signature, layout and limits of version 2, by PyTorch's attention.

Shapes: P sequences, H query heads, G key/value heads (G divides H), T queries, S keys, D head width.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_kernels import dispatch


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """q (P, T, H, D), k and v (P, S, G, D) -> (P, T, H, D); where it is causal, the last query sees the last key."""
    assert len(q) > 0, "batch size must be positive"
    assert q.dtype in (torch.bfloat16, torch.float16), "FlashAttention only support fp16 and bf16 data type"
    assert all(x.stride(-1) == 1 for x in (q, k, v)), "Input tensor must have contiguous last dimension"
    assert q.shape[-1] <= 256, "FlashAttention forward only supports head dimension at most 256"
    new, total = q.shape[1], k.shape[1]
    mask_TS = torch.ones(new, total, dtype=torch.bool).tril(total - new) if causal else None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TS, scale=softmax_scale, enable_gqa=True)
    return out.transpose(1, 2).contiguous()


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """flash-attn seems installed, and the CPU one of its devices; the list gets the shape of queries of each call."""
    calls = []

    def recorded(q: Tensor, *args: Tensor, **options: object) -> Tensor:
        calls.append(tuple(q.shape))
        return flash_attn_func(q, *args, **options)  # type: ignore[arg-type]

    module = ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", loader=None)
    module.flash_attn_func = recorded  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(dispatch, "flash_devices", ("cuda", "cpu"))
    return calls
