"""A straightforward implementation of VAR, to compare with: one masked pass over all tokens, all logits.

Written from the equations alone (arXiv:2404.02905), over the tensors of a published state dict. It shares nothing with
`network`. Shapes: P pairs, L tokens, C width, Z latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD_WIDTH = 64  # of a model without QK-norm


@torch.inference_mode()
def token_log_probs(w: Mapping[str, Tensor], tokens_L: Tensor, teacher_1TZ: Tensor, class_id_P: Tensor) -> Tensor:
    """log p(token | coarser scales, class) of each token under each class, in nats.

    Args:
        w: a published state dict.
        tokens_L: int64, of the first scales; a prefix of an image's tokens will do.
        teacher_1TZ: the quantizer's input for the tokens from scale 2 on.
        class_id_P: int64.
    Returns: (P, L), in the dtype of the weights.
    """
    logits_PLV = logits(w, teacher_1TZ, class_id_P)
    return logits_PLV.log_softmax(-1).gather(-1, tokens_L.expand(len(class_id_P), -1)[..., None])[..., 0]


def logits(w: Mapping[str, Tensor], teacher_BTZ: Tensor, class_id_P: Tensor) -> Tensor:
    """Logits of the tokens, (P, L, V); arguments as `token_log_probs`, the quantizer's input of each pair or of all."""
    depth = sum(key.endswith("mat_qkv.weight") for key in w)
    length = w["pos_start"].shape[1] + teacher_BTZ.shape[1]
    level_L = w["lvl_1L"].flatten()[:length]
    mask_LL = torch.where(level_L[:, None] >= level_L[None, :], 0.0, -math.inf)
    cond_PC = w["class_emb.weight"][class_id_P]
    start = cond_PC[:, None] + w["pos_start"]
    rest = F.linear(teacher_BTZ, w["word_embed.weight"], w["word_embed.bias"]).expand(len(class_id_P), -1, -1)
    x = torch.cat([start, rest], 1) + w["pos_1LC"][:, :length] + w["lvl_embed.weight"][level_L]
    for i in range(depth):
        x = _block(w, f"blocks.{i}.", x, cond_PC, mask_LL)
    scale, shift = _modulation(w, "head_nm.ada_lin.1", cond_PC, 2)
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (scale + 1) + shift
    return F.linear(x, w["head.weight"], w["head.bias"])


def _six(w: Mapping[str, Tensor], p: str, cond_PC: Tensor) -> tuple[Tensor, ...]:
    """Of a block: gamma, scale and shift of its two branches, each (P, 1, C)."""
    if p + "ada_gss" not in w:
        return _modulation(w, p + "ada_lin.1", cond_PC, 6)
    shared_6PC = torch.stack(_modulation(w, "shared_ada_lin.1", cond_PC, 6))
    return (shared_6PC + w[p + "ada_gss"][0, 0, :, None, None]).unbind(0)


def _modulation(w: Mapping[str, Tensor], key: str, cond_PC: Tensor, parts: int) -> tuple[Tensor, ...]:
    out = F.linear(F.silu(cond_PC), w[key + ".weight"], w[key + ".bias"])
    return out.view(len(cond_PC), 1, parts, -1).unbind(2)


def _block(w: Mapping[str, Tensor], p: str, x: Tensor, cond_PC: Tensor, mask_LL: Tensor) -> Tensor:
    gamma1, gamma2, scale1, scale2, shift1, shift2 = _six(w, p, cond_PC)
    y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (scale1 + 1) + shift1
    bias = torch.cat([w[p + "attn.q_bias"], torch.zeros_like(w[p + "attn.q_bias"]), w[p + "attn.v_bias"]])
    qkv, gain = F.linear(y, w[p + "attn.mat_qkv.weight"], bias), w.get(p + "attn.scale_mul_1H11")
    heads = x.shape[-1] // HEAD_WIDTH if gain is None else gain.shape[1]
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if gain is None:
        scale = 0.25 / math.sqrt(HEAD_WIDTH)
    else:
        scale, k = 1.0, F.normalize(k, dim=-1)
        q = F.normalize(q, dim=-1) * gain.clamp_max(math.log(100)).exp()
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_LL, scale=scale).transpose(1, 2).flatten(2)
    x = x + gamma1 * F.linear(y, w[p + "attn.proj.weight"], w[p + "attn.proj.bias"])
    y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (scale2 + 1) + shift2
    y = F.gelu(F.linear(y, w[p + "ffn.fc1.weight"], w[p + "ffn.fc1.bias"]), approximate="tanh")
    return x + gamma2 * F.linear(y, w[p + "ffn.fc2.weight"], w[p + "ffn.fc2.bias"])
