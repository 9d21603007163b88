"""A straightforward implementation of LlamaGen, to compare with: one pass over all tokens, all logits.

Written from the equations alone (arXiv:2406.06525), over the tensors of a published state dict. It shares nothing with
`network`. Shapes: P pairs, L tokens, C width, H heads, D head width, J = D / 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.inference_mode()
def token_log_probs(
    w: Mapping[str, Tensor], tokens_L: Tensor, class_id_P: Tensor, *, heads: int, cells: int | None = None
) -> Tensor:
    """log p(token | tokens before, class) of each token under each class, in nats.

    Args:
        w: a published state dict. class_id_P: int64.
        tokens_L: int64, of a square grid, row by row, or the first of one.
        heads: H; the heads of keys follow from the tensors.
        cells: of the grid; None where tokens_L is all of it.
    Returns: (P, L), in the dtype of the weights.
    """
    first_PC = w["cls_embedding.embedding_table.weight"][class_id_P]
    rest_LC = w["tok_embeddings.weight"][tokens_L[:-1]]
    x = torch.cat([first_PC[:, None], rest_LC.expand(len(class_id_P), -1, -1)], dim=1)
    turn_LJ2 = rotations(cells or len(tokens_L), x.shape[-1] // heads, x)[: len(tokens_L)]
    logits = transformer(w, x, turn_LJ2, heads)
    return logits.log_softmax(-1).gather(-1, tokens_L.expand(len(x), -1)[..., None])[..., 0]


def rotations(cells: int, head_width: int, like: Tensor) -> Tensor:
    """Cosine and sine by which each pair of channels is turned, (1 + cells, J, 2), the dtype that of `like`.

    Row 0, the class's, is zero; then each cell's, by row and column.
    """
    side, cell = round(cells**0.5), torch.arange(cells, device=like.device)
    frequency = 10_000.0 ** -(torch.arange(0, head_width // 2, 2, device=like.device) / (head_width / 2))
    angle = torch.cat([torch.outer(cell // side, frequency), torch.outer(cell % side, frequency)], dim=-1)
    return F.pad(torch.stack([angle.cos(), angle.sin()], dim=-1), (0, 0, 0, 0, 1, 0)).to(like.dtype)


def transformer(
    w: Mapping[str, Tensor], x: Tensor, turn_LJ2: Tensor, heads: int, mask_P1LL: Tensor | None = None
) -> Tensor:
    """Logits (P, L, V) of the embeddings x (P, L, C) at positions with these rotations.

    Args:
        mask_P1LL: which positions each one sees, bool; None for those before it and itself.
    """
    for i in range(sum(key.endswith("wqkv.weight") for key in w)):
        p = f"layers.{i}."
        x = x + _attention(w, p + "attention.", _norm(x, w[p + "attention_norm.weight"]), turn_LJ2, heads, mask_P1LL)
        x = x + _feed_forward(w, p + "feed_forward.", _norm(x, w[p + "ffn_norm.weight"]))
    return F.linear(_norm(x, w["norm.weight"]), w["output.weight"])


def turned(x_PLHD: Tensor, turn_LJ2: Tensor) -> Tensor:
    """Pairs of channels turned; those of the class become zero."""
    cos, sin = turn_LJ2[:, None].unbind(-1)
    a, b = x_PLHD[..., 0::2], x_PLHD[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def _attention(
    w: Mapping[str, Tensor], p: str, x: Tensor, turn_LJ2: Tensor, heads: int, mask_P1LL: Tensor | None
) -> Tensor:
    width = x.shape[-1]
    qkv = F.linear(x, w[p + "wqkv.weight"])
    key_width = (qkv.shape[-1] - width) // 2
    q, k, v = (part.unflatten(-1, (-1, width // heads)) for part in qkv.split([width, key_width, key_width], dim=-1))
    q, k = turned(q, turn_LJ2), turned(k, turn_LJ2)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    k, v = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_P1LL, is_causal=mask_P1LL is None)
    return F.linear(y.transpose(1, 2).flatten(2), w[p + "wo.weight"])


def _feed_forward(w: Mapping[str, Tensor], p: str, x: Tensor) -> Tensor:
    hidden = F.silu(F.linear(x, w[p + "w1.weight"])) * F.linear(x, w[p + "w3.weight"])
    return F.linear(hidden, w[p + "w2.weight"])
