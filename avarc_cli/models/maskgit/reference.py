"""A straightforward implementation of MaskGIT, to compare with: all logits of every pass.

Written from the equations alone (arXiv:2209.12152, arXiv:1810.04805), over the tensors of a published state dict. It
shares nothing with `network`. Shapes: P pairs, L tokens, T = L + 1 positions, C width, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.inference_mode()
def token_log_probs(
    w: Mapping[str, Tensor], tokens_L: Tensor, class_id_P: Tensor, *, heads: int, ends: Sequence[int]
) -> Tensor:
    """log p(token | tokens of the blocks before, class) of each token under each class, in nats.

    Args:
        w: a published state dict, without "model." before the keys of a BERT. tokens_L: int64. class_id_P: int64.
        ends: where each block of tokens ends, in the order of the positions.
    Returns: (P, L), in the dtype of the weights.
    """
    mask = len(w["lm_head.weight"])
    ids_PL = torch.full((len(class_id_P), len(tokens_L)), mask, device=tokens_L.device)
    scored, start = [], 0
    for end in ends:
        ids_PT = torch.cat([mask + 1 + class_id_P[:, None], ids_PL], dim=1)
        log_prob_PLV = logits(w, ids_PT, heads).log_softmax(-1)
        scored.append(log_prob_PLV[:, torch.arange(start, end), tokens_L[start:end]])
        ids_PL[:, start:end] = tokens_L[start:end]
        start = end
    return torch.cat(scored, dim=1)


def logits(w: Mapping[str, Tensor], ids_PT: Tensor, heads: int) -> Tensor:
    """Logits of the tokens, (P, L, V), from the ids of the class and of the tokens that are visible or hidden."""
    hidden = _uvit if "mid_block.norm1.weight" in w else _bert
    return _linear(w, "lm_head", hidden(w, ids_PT, heads))[:, 1:]


def _uvit(w: Mapping[str, Tensor], ids_PT: Tensor, heads: int) -> Tensor:
    def block(p: str, x: Tensor) -> Tensor:
        q, k, v = F.linear(_norm(w, p + "norm1", x, 1e-5), w[p + "attn.qkv.weight"]).chunk(3, dim=-1)
        x = x + _linear(w, p + "attn.proj", _attention(q, k, v, heads))
        return x + _linear(w, p + "mlp.fc2", F.gelu(_linear(w, p + "mlp.fc1", _norm(w, p + "norm2", x, 1e-5))))

    half = sum(key.startswith("in_blocks.") and key.endswith("qkv.weight") for key in w)
    x, earlier = w["embeddings.weight"][ids_PT] + w["pos_embed"][:, : ids_PT.shape[1]], []
    for i in range(half):
        x = block(f"in_blocks.{i}.", x)
        earlier.append(x)
    x = block("mid_block.", x)
    for i in range(half):
        x = _linear(w, f"out_blocks.{i}.skip_linear", torch.cat([x, earlier.pop()], dim=-1))
        x = block(f"out_blocks.{i}.", x)
    return _norm(w, "norm", x, 1e-5)


def _bert(w: Mapping[str, Tensor], ids_PT: Tensor, heads: int) -> Tensor:
    e = "embeddings."
    x = w[e + "word_embeddings.weight"][ids_PT] + w[e + "position_embeddings.weight"][: ids_PT.shape[1]]
    x = _norm(w, e + "LayerNorm", x + w[e + "token_type_embeddings.weight"][0], 1e-12)
    for i in range(sum(key.endswith("query.weight") for key in w)):
        p = f"encoder.layer.{i}."
        q, k, v = (_linear(w, f"{p}attention.self.{name}", x) for name in ("query", "key", "value"))
        y = _linear(w, p + "attention.output.dense", _attention(q, k, v, heads))
        x = _norm(w, p + "attention.output.LayerNorm", x + y, 1e-12)
        y = _linear(w, p + "output.dense", F.gelu(_linear(w, p + "intermediate.dense", x)))
        x = _norm(w, p + "output.LayerNorm", x + y, 1e-12)
    return x


def _linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[name + ".weight"], w[name + ".bias"])


def _norm(w: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
