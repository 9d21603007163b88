"""LlamaGen's transformer (arXiv:2406.06525): p(token | tokens before it in raster order, class).

Checkpoint-compatible with the published class-conditional models. Written for scoring: any run of positions can be
evaluated after a cached prefix, and all logits are never stored.

Position 0 is the class, position p >= 1 the token of cell p - 1, and the hidden state of position p scores the token of
cell p. A block is two branches, attention and feed-forward. Each adds to the residual stream x:

    x = x + branch(norm(x)),      norm(x) = x / sqrt(mean(x^2) + 1e-5) * weight.

Adding a branch and the norm before the next one are one operation, `residual_rms_norm`, so the loop over branches is in
`LlamaGen.hidden`.

The class is an input of position 0 only. So the queries, keys and values of layer 0 of all other positions are those of
the image, whatever the class, and `hidden` takes them as part of its `Inputs`.

Shapes: P sequences (pairs of image and class), T positions that are evaluated, L positions in all, C width, H and G
heads of queries and of keys, D head width, J = D / 2, F hidden width, V codes, N classes, g side of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.dropout import Dropout
from avarc_cli.layers.kernels import use_kernels
from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.layers.linears import convert_linears, linear
from avarc_cli.layers.precision import FP32, Precision
from avarc_cli.layers.state_dict import build
from avarc_cli.models.llamagen.config import LlamaGenConfig
from avarc_kernels import causal_attention, residual_rms_norm, rotary, swiglu

NORM_EPS = 1e-5
ROTARY_BASE = 10_000.0
TABLE = "freqs_cis"  # of rotations: in some published files, but computed here
Network = TypeVar("Network", bound="LlamaGen")


class QKV(NamedTuple):
    """Inputs of an attention: queries and keys are turned by their position."""

    q_PTHD: Tensor
    k_PTGD: Tensor
    v_PTGD: Tensor

    def rows(self, row_P: Tensor) -> QKV:
        """Those of these sequences."""
        return QKV(*(x[row_P] for x in self))


class Inputs(NamedTuple):
    """What the blocks are given at some positions of every sequence."""

    x_PTC: Tensor
    """Embeddings, float32."""
    qkv: QKV
    """Of layer 0."""
    table_TJ2: Tensor
    """Cosines and sines of the positions; (P, T, J, 2) where every sequence has its own."""

    def rows(self, row_P: Tensor) -> Inputs:
        """Those of these sequences."""
        table_TJ2 = self.table_TJ2 if self.table_TJ2.ndim == 3 else self.table_TJ2[row_P]
        return Inputs(self.x_PTC[row_P], self.qkv.rows(row_P), table_TJ2)

    def after(self, first: Inputs) -> Inputs:
        """These positions and, before them, those of `first`, whose rows of the table are those of all sequences."""
        qkv = QKV(*(torch.cat(pair, dim=1) for pair in zip(first.qkv, self.qkv, strict=True)))
        first_TJ2 = first.table_TJ2.expand(*self.table_TJ2.shape[:-3], -1, -1, -1)
        return Inputs(torch.cat([first.x_PTC, self.x_PTC], dim=1), qkv, torch.cat([first_TJ2, self.table_TJ2], dim=-3))


class Attention(nn.Module):
    def __init__(self, c: LlamaGenConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = c.heads, c.kv_heads, c.head_width
        self.wqkv = nn.Linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_width, bias=False)
        self.wo = nn.Linear(c.width, c.width, bias=False)

    def qkv(self, x_PTC: Tensor, table_TJ2: Tensor, dtype: torch.dtype, kernels: str) -> QKV:
        """Queries, keys and values of these positions, in `dtype`."""
        heads = linear(self.wqkv, x_PTC).unflatten(-1, (-1, self.head_width))
        qk, v = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        q, k = rotary(qk, table_TJ2, dtype=dtype, backend=kernels).split([self.heads, self.kv_heads], dim=2)
        return QKV(q, k, v.to(dtype))

    def attend(self, qkv: QKV, layer: int, kv_cache: KVCache | None, kernels: str, mask: Tensor | None) -> Tensor:
        """Every position's mean of the values it sees, (P, T, C); with a mask through PyTorch, whatever the kernels.

        Args:
            mask: of which positions each one sees, (T, S) bool, or what is added to the scores, (P, 1, T, S).
        """
        q, k, v = (x.transpose(1, 2) for x in qkv)
        if kv_cache is not None:
            k, v = kv_cache.append(layer, k, v)
        scale = self.head_width**-0.5
        if mask is None:
            out = causal_attention(q, k, v, scale=scale, backend=kernels)
        else:
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    def __init__(self, c: LlamaGenConfig) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(c.width, c.ffn, bias=False), nn.Linear(c.width, c.ffn, bias=False)
        self.w2 = nn.Linear(c.ffn, c.width, bias=False)

    def forward(self, x: Tensor, kernels: str) -> Tensor:
        """The branch's output, (P, T, C)."""
        return linear(self.w2, swiglu(linear(self.w1, x), linear(self.w3, x), backend=kernels))


class RMSNorm(nn.Module):
    """The weight of a norm; `residual_rms_norm` computes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Block(nn.Module):
    """The weights of two branches and of the norms before them."""

    def __init__(self, c: LlamaGenConfig) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(c), FeedForward(c)
        self.attention_norm, self.ffn_norm = RMSNorm(c.width), RMSNorm(c.width)


class ClassEmbedding(nn.Module):
    def __init__(self, c: LlamaGenConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(c.num_classes + 1, c.width)


class LlamaGen(nn.Module):
    """The transformer. Class id `num_classes` is the unconditional class."""

    table_LJ2: Tensor
    drops_class: ClassVar[bool] = True
    """Whether dropout is applied to the class's embedding, as to those of tokens."""
    causal: ClassVar[bool] = True
    """Whether positions see all before them alike, so that scoring needs no mask."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config = c = config
        self.precision, self.kernels = FP32, "torch"
        self.drop = Dropout()  # of embeddings and of the branches' outputs
        self.cls_embedding = ClassEmbedding(c)
        self.tok_embeddings = nn.Embedding(c.vocab_size, c.width)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = RMSNorm(c.width)
        self.output = nn.Linear(c.width, c.vocab_size, bias=False)
        assert c.side is not None, "the grid is not known yet"
        with torch.device("cpu"):  # a network is made on no memory, but this table is not among the tensors of a file
            self.register_buffer("table_LJ2", rotations(c.side, c.head_width), persistent=False)

    @classmethod
    def from_state_dict(
        cls: type[Network], config: LlamaGenConfig, tensors: Mapping[str, Tensor], *, source: str
    ) -> Network:
        """A network of this shape with these tensors.

        Raises: CheckpointError naming `source` and the first few offending keys.
        """
        weights = {key: tensor for key, tensor in tensors.items() if key != TABLE}
        return build(lambda: cls(config), weights, source=source, expected=config.title)

    @property
    def blocks(self) -> list[Block]:
        """The blocks, typed."""
        return cast("list[Block]", list(self.layers))

    def set_precision(self, precision: Precision) -> LlamaGen:
        """Run the linears of the blocks in this precision; norms, residual stream, rotations and, on a CPU, the head
        stay float32.

        Raises: UsageError for widths that the precision does not support.
        """
        self.precision = precision
        for block in self.blocks:
            names = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
            convert_linears(block, names, precision)
        if self.output.weight.is_cuda:
            self.output.to(precision.activations)
        return self

    def set_kernels(self, kernels: str) -> LlamaGen:
        """Set the implementation of the operations. Raises: as `use_kernels`."""
        self.kernels = kernels
        use_kernels(self, kernels, head_width=self.config.head_width if self.causal else None)
        return self

    def class_inputs(self, class_id_P: Tensor, *, kernels: str | None = None) -> Inputs:
        """Of position 0; `kernels` as for `hidden`."""
        x_P1C = cast("Tensor", self.cls_embedding.embedding_table(class_id_P))[:, None]
        return self.with_qkv(self.drop(x_P1C) if self.drops_class else x_P1C, self.table_LJ2[:1], kernels)

    def token_inputs(self, tokens_BT: Tensor, start: int, *, kernels: str | None = None) -> Inputs:
        """Of the positions of these tokens, from position `start` on."""
        table_TJ2 = self.table_LJ2[start : start + tokens_BT.shape[1]]
        return self.with_qkv(self.drop(self.tok_embeddings(tokens_BT)), table_TJ2, kernels)

    def with_qkv(self, x_PTC: Tensor, table_TJ2: Tensor, kernels: str | None) -> Inputs:
        """These embeddings with queries, keys and values of layer 0."""
        kernels, block = kernels or self.kernels, self.blocks[0]
        norm, dtype = block.attention_norm.weight, self.precision.activations
        normed = residual_rms_norm(x_PTC, None, norm, eps=NORM_EPS, dtype=dtype, backend=kernels)[1]
        qkv = block.attention.qkv(normed, table_TJ2, self.precision.attention, kernels)
        return Inputs(x_PTC, qkv, table_TJ2)

    def hidden(
        self,
        inputs: Inputs,
        kv_cache: KVCache | None = None,
        *,
        kernels: str | None = None,
        mask_TT: Tensor | None = None,
        attend: Callable[[int, QKV], Tensor] | None = None,
        returned: slice | Tensor = slice(None),
    ) -> Tensor:
        """Last hidden states after the final norm, (P, T, C), in the head's dtype.

        Args:
            inputs: of T positions that follow those in the cache.
            kv_cache: keys and values of the positions before; stores those of the new ones (KVCache.limit). None if
                there are none before and nothing is to be stored.
            kernels: None for the model's own. With gradients it must be "torch".
            mask_TT: which positions each one sees, bool; None for all before it and itself.
            attend: gives what attention gives in a layer, (P, T, C); None for attention to the positions that
                kv_cache and mask_TT say.
            returned: the positions whose hidden states are needed.
        """
        kernels, dtype = kernels or self.kernels, self.precision.activations
        x_PTC, qkv, table_TJ2 = inputs
        norms = [block.attention_norm.weight for block in self.blocks[1:]]
        for layer, (block, following) in enumerate(zip(self.blocks, [*norms, None], strict=True)):
            if attend is None:
                y_PTC = block.attention.attend(qkv, layer, kv_cache, kernels, mask_TT)
            else:
                y_PTC = attend(layer, qkv)
            if following is None:  # no other position is looked at any more
                x_PTC, y_PTC = x_PTC[:, returned].contiguous(), y_PTC[:, returned]
            y_PTC, weight = self.drop(linear(block.attention.wo, y_PTC)), block.ffn_norm.weight
            x_PTC, normed = residual_rms_norm(x_PTC, y_PTC, weight, eps=NORM_EPS, dtype=dtype, backend=kernels)
            y_PTC = self.drop(block.feed_forward(normed, kernels))
            if following is not None:
                x_PTC, normed = residual_rms_norm(x_PTC, y_PTC, following, eps=NORM_EPS, dtype=dtype, backend=kernels)
                qkv = self.blocks[layer + 1].attention.qkv(normed, table_TJ2, self.precision.attention, kernels)
        dtype = self.output.weight.dtype
        return residual_rms_norm(x_PTC, y_PTC, self.norm.weight, eps=NORM_EPS, dtype=dtype, backend=kernels)[1]


def rotations(side: int, head_width: int) -> Tensor:
    """Cosine and sine of every position and pair of channels, (1 + L, J, 2) float32, for side x side tokens.

    Position 0, the class, has zeros: its query and key vanish. Position p has the row and column of cell p - 1; half of
    the pairs turn with the row, the others with the column, at frequencies base^(-2k / (D / 2)).
    """
    count = head_width // 4
    frequency = 1.0 / ROTARY_BASE ** (torch.arange(0, 2 * count, 2).float() / (head_width // 2))
    angle = torch.outer(torch.arange(side).float(), frequency)
    by_row = angle[:, None].expand(side, side, count)
    by_column = angle[None].expand(side, side, count)
    angles_gJ = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    turned = torch.stack([angles_gJ.cos(), angles_gJ.sin()], dim=-1)
    return torch.cat([torch.zeros_like(turned[:1]), turned])
