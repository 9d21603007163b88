"""The transformer blocks of CLIP's vision transformer (arXiv:2103.00020), under their published keys.

Shapes: B sequences, T positions, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Full self-attention with the keys of `torch.nn.MultiheadAttention`.

    That module chooses between implementations, which round differently, by the state of the process.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BTC: Tensor, seen: Tensor | None = None) -> Tensor:
        """`seen`: which positions each one attends to, bool, that broadcasts to (B, H, T, T); None for all."""
        qkv = F.linear(x_BTC, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.transpose(1, 2) for part in qkv.unflatten(-1, (3, self.heads, -1)).unbind(2))  # (B, H, T, D)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), SelfAttention(width, heads)
        self.ln_2, self.mlp = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x_BTC: Tensor, seen: Tensor | None = None) -> Tensor:
        x_BTC = x_BTC + self.attn(self.ln_1(x_BTC), seen)
        return x_BTC + self.mlp(self.ln_2(x_BTC))
