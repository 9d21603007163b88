"""The UViT (arXiv:2209.12152) of the largest published MaskGIT of TiTok's tokens, under its published keys.

Shapes: P sequences, T positions, L tokens, C width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from avarc_cli.layers.gelu import linear_gelu
from avarc_cli.layers.linears import linear
from avarc_cli.layers.precision import Precision
from avarc_cli.models.masked.attention import attend
from avarc_cli.models.maskgit.config import MaskGITConfig
from avarc_cli.models.maskgit.network import MaskedTransformer


class Attention(nn.Module):
    def __init__(self, c: MaskGITConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.qkv, self.proj = nn.Linear(c.width, 3 * c.width, bias=False), nn.Linear(c.width, c.width)

    def forward(self, x_PTC: Tensor, precision: Precision) -> Tensor:
        """The branch's output, (P, T, C)."""
        q, k, v = linear(self.qkv, x_PTC).chunk(3, dim=-1)
        return linear(self.proj, attend(q, k, v, self.heads, precision))


class FeedForward(nn.Module):
    def __init__(self, c: MaskGITConfig) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c.width, c.hidden), nn.Linear(c.hidden, c.width)

    def forward(self, x: Tensor) -> Tensor:
        """The branch's output, in the shape of x."""
        return linear(self.fc2, linear_gelu(self.fc1, x, approximate="none"))


class Block(nn.Module):
    """Norms come before the branches. In the second half, a block first merges its input with an earlier output."""

    def __init__(self, c: MaskGITConfig, *, skip: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.attn, self.mlp = Attention(c), FeedForward(c)
        self.skip_linear = nn.Linear(2 * c.width, c.width) if skip else None

    def forward(self, x: Tensor, precision: Precision, earlier: Tensor | None = None) -> Tensor:
        """The residual stream (P, T, C) float32 after the block."""
        if self.skip_linear is not None and earlier is not None:
            x = linear(self.skip_linear, torch.cat([x, earlier], dim=-1))
        x = x + self.attn(self.norm1(x).to(precision.activations), precision)
        return x + self.mlp(self.norm2(x).to(precision.activations))


class UViT(MaskedTransformer):
    linears = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    table = "embeddings.weight"

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = nn.Embedding(c.first_class + c.num_classes + 1, c.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, c.positions, c.width))
        self.in_blocks = nn.ModuleList(Block(c) for _ in range(c.depth // 2))
        self.mid_block = Block(c)
        self.out_blocks = nn.ModuleList(Block(c, skip=True) for _ in range(c.depth // 2))
        self.norm, self.lm_head = nn.LayerNorm(c.width), nn.Linear(c.width, c.vocab_size)

    @property
    def words(self) -> nn.Embedding:
        return self.embeddings

    @property
    def head(self) -> nn.Linear:
        return self.lm_head

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from ((f"in_blocks.{i}", block) for i, block in enumerate(self.in_blocks))
        yield "mid_block", self.mid_block
        yield from ((f"out_blocks.{i}", block) for i, block in enumerate(self.out_blocks))

    def hidden(self, class_id_P: Tensor, ids_PL: Tensor) -> Tensor:
        x = self.embeddings(self.ids(class_id_P, ids_PL)) + self.pos_embed
        earlier = []
        for block in self.in_blocks:
            x = block(x, self.precision)
            earlier.append(x)
        x = self.mid_block(x, self.precision)
        for block in self.out_blocks:
            x = block(x, self.precision, earlier.pop())
        return self.norm(x[:, 1:])
