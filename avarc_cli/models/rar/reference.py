"""A straightforward implementation of RAR, to compare with: one pass over all tokens, all logits.

Written from the equations alone (arXiv:2411.00776), over the tensors of a published state dict, in raster order. It
shares nothing with `network`, and computes the modulation of every pair. Shapes: P pairs, L tokens, T = L + 1
positions, C width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6


@torch.inference_mode()
def token_log_probs(w: Mapping[str, Tensor], tokens_L: Tensor, class_id_P: Tensor) -> Tensor:
    """log p(token | tokens before, class) of each token under each class, in nats.

    Args:
        w: a published state dict. tokens_L: int64, in raster order. class_id_P: int64.
    Returns: (P, L), in the dtype of the weights.
    """
    log_prob_PLV = logits(w, tokens_L[:-1], class_id_P).log_softmax(-1)
    return log_prob_PLV.gather(-1, tokens_L.expand(len(class_id_P), -1)[..., None])[..., 0]


@torch.inference_mode()
def logits(w: Mapping[str, Tensor], before_L: Tensor, class_id_P: Tensor) -> Tensor:
    """Logits of the first token, and of the one after each of these, under each class: (P, 1 + len(before_L), V)."""
    length, embeddings, place, ahead = 1 + len(before_L), w["embeddings.weight"], w["pos_embed"][0], _targets(w)
    class_PC = embeddings[len(w["lm_head.weight"]) + 1 + class_id_P]
    first_P1C = (w["cls_token"][0] + place[:1]).expand(len(class_PC), 1, -1)
    class_P1C = (class_PC + place[1] + ahead[0])[:, None]
    rest_LC = embeddings[before_L] + place[2 : length + 1] + ahead[1:length]
    x = torch.cat([first_P1C, class_P1C, rest_LC.expand(len(class_PC), -1, -1)], dim=1)
    condition = F.silu(class_PC[:, None] + w["timesteps_embeddings"][0, : length + 1])
    for i in range(sum(key.endswith("qkv.weight") for key in w)):
        p = f"blocks.{i}."
        shift1, scale1, gate1, shift2, scale2, gate2 = _linear(w, p + "adaLN_modulation.1", condition).chunk(6, dim=-1)
        y = _norm(w, p + "norm1", x) * (1 + scale1) + shift1
        x = x + gate1 * _attention(w, p + "attn.", y)
        y = _norm(w, p + "norm2", x) * (1 + scale2) + shift2
        x = x + gate2 * _linear(w, p + "mlp.fc2", F.gelu(_linear(w, p + "mlp.fc1", y)))
    scale, shift = _linear(w, "adaln_before_head.adaLN_modulation.1", condition).chunk(2, dim=-1)
    return _linear(w, "lm_head", F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift)[:, 1:]


def _targets(w: Mapping[str, Tensor]) -> Tensor:
    """What is added where a token is predicted, by the token's place."""
    return w["target_aware_pos_embed"][0, 2:]


def _linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[name + ".weight"], w[name + ".bias"])


def _norm(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], EPS)


def _attention(w: Mapping[str, Tensor], p: str, x: Tensor) -> Tensor:
    heads = x.shape[-1] // len(w[p + "q_norm.weight"])
    q, k, v = _linear(w, p + "qkv", x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(_norm(w, p + "q_norm", q), _norm(w, p + "k_norm", k), v, is_causal=True)
    return _linear(w, p + "proj", y.transpose(1, 2).flatten(2))
