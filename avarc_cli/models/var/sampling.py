"""Sampling from VAR with classifier-free guidance, scale by scale.

Shapes: B images, T positions of a scale, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.layers.sampling import draw, restrict
from avarc_cli.models.var.network import VAR
from avarc_cli.tokenizers.vqvae.network import MultiScaleQuantizer


@torch.inference_mode()
def sample(
    var: VAR,
    quantizer: MultiScaleQuantizer,
    class_id_B: Tensor,
    *,
    guidance: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Tokens (B, L) int64, one image for each class id; arguments as `LikelihoodModel.sample`.

    Scale k of K (from 0) uses (1 + t) conditional - t unconditional logits with t = guidance * k / (K - 1).
    """
    sides, batch = var.config.patch_nums, len(class_id_B)
    both_2B = torch.cat([class_id_B, torch.full_like(class_id_B, var.config.num_classes)])
    condition = var.condition(both_2B)
    x, tokens = var.embed_start(both_2B), []
    kv_cache = KVCache(var.config.depth, capacity=var.config.ends[-1])
    latents = torch.zeros(batch, quantizer.embedding.embedding_dim, sides[-1], sides[-1], device=var.pos_1LC.device)
    for k, side in enumerate(sides):
        hidden = var.hidden(x, condition, [side * side], kv_cache)
        conditional, unconditional = var.head(hidden).float().chunk(2)
        t = guidance * k / max(len(sides) - 1, 1)
        logits_BTV = restrict((1 + t) * conditional - t * unconditional, top_k, top_p)
        tokens.append(draw(logits_BTV, generators))
        latents = latents + quantizer.contribution(k, tokens[-1].unflatten(1, (side, side)))
        if k + 1 < len(sides):
            following = quantizer.shrink(k + 1, latents).flatten(2).transpose(1, 2)
            x = var.embed_scale(k + 1, following).repeat(2, 1, 1)
    return torch.cat(tokens, dim=1)
