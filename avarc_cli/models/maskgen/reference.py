"""A straightforward implementation of MaskGen VQ, to compare with: captions and logits are computed in every pass.

Written from the equations alone (arXiv:2403.03206, arXiv:2501.07730), over the tensors of a published state dict. It
shares nothing with `network`. Shapes: P pairs, L tokens, T positions of a caption, D channels of its features, C width,
V codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


@torch.inference_mode()
def token_log_probs(
    w: Weights,
    tokens_L: Tensor,
    sequence_PTD: Tensor,
    pooled_PD: Tensor,
    score: float,
    *,
    heads: int,
    codes: int,
    ends: Sequence[int],
) -> Tensor:
    """log p(token | tokens of the blocks before, caption) of each token under each caption, in nats.

    Args:
        w: a published state dict. tokens_L: int64.
        sequence_PTD, pooled_PD: features of each pair's caption. score: aesthetic score of all captions.
        codes: V. ends: where each block of tokens ends, in the order of the positions.
    Returns: (P, L), in the dtype of the weights.
    """
    ids_PL = torch.full((len(pooled_PD), len(tokens_L)), codes, device=tokens_L.device)
    scored, start = [], 0
    for end in ends:
        log_prob_PLV = logits(w, ids_PL, sequence_PTD, pooled_PD, score, heads=heads, codes=codes).log_softmax(-1)
        scored.append(log_prob_PLV[:, torch.arange(start, end), tokens_L[start:end]])
        ids_PL[:, start:end] = tokens_L[start:end]
        start = end
    return torch.cat(scored, dim=1)


def logits(
    w: Weights, ids_PL: Tensor, sequence_PTD: Tensor, pooled_PD: Tensor, score: float, *, heads: int, codes: int
) -> Tensor:
    """Logits of the tokens, (P, L, V), from the ids that are visible or hidden; arguments as `token_log_probs`."""
    return _hidden(w, ids_PL, sequence_PTD, pooled_PD, score, heads) @ w["embeddings.weight"][:codes].T


def _hidden(w: Weights, ids_PL: Tensor, text_PTD: Tensor, pooled_PD: Tensor, score: float, heads: int) -> Tensor:
    half = (w["cond_pooled_proj.weight"].shape[1] - pooled_PD.shape[1]) // 2
    angle = 100 * score * (-math.log(1000) * torch.arange(half, device=ids_PL.device) / half).exp()
    sinusoids = torch.cat([angle.sin(), angle.cos()]).expand(len(pooled_PD), -1)
    s = F.silu(_linear(w, "cond_pooled_proj", torch.cat([pooled_PD, sinusoids], dim=1)))[:, None]
    x = w["embeddings.weight"][ids_PL] + w["pos_embed"]
    c = _linear(w, "text_embed_proj", text_PTD)
    depth = sum(key.endswith("attn.to_q.weight") for key in w)
    for i in range(depth):
        x, c = _block(w, f"blocks.{i}.", x, c, s, heads, last=i == depth - 1)
    scale, shift = _linear(w, "norm.linear", s).chunk(2, dim=-1)
    return _norm(x, scale, shift)


def _block(w: Weights, p: str, x: Tensor, c: Tensor, s: Tensor, heads: int, *, last: bool) -> tuple[Tensor, Tensor]:
    shift, scale, gate, *mlp = _linear(w, p + "norm1.linear", s).chunk(6, dim=-1)
    of_context = _linear(w, p + "norm1_context.linear", s)
    if last:
        c_scale, c_shift = of_context.chunk(2, dim=-1)
    else:
        c_shift, c_scale, c_gate, *c_mlp = of_context.chunk(6, dim=-1)
    y, d = _norm(x, scale, shift), _norm(c, c_scale, c_shift)
    q, k, v = (
        torch.cat([_linear(w, f"{p}attn.to_{a}", y), _linear(w, f"{p}attn.add_{a}_proj", d)], dim=1) for a in "qkv"
    )
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + gate * _linear(w, p + "attn.to_out.0", attended[:, : x.shape[1]])
    x = _mlp(w, p + "ff.", x, *mlp)
    if last:
        return x, c
    c = c + c_gate * _linear(w, p + "attn.to_add_out", attended[:, x.shape[1] :])
    return x, _mlp(w, p + "ff_context.", c, *c_mlp)


def _mlp(w: Weights, p: str, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    hidden = F.gelu(_linear(w, p + "net.0.proj", _norm(x, scale, shift)), approximate="tanh")
    return x + gate * _linear(w, p + "net.2", hidden)


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[name + ".weight"], w[name + ".bias"])
