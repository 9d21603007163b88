"""Sampling from VAR with classifier-free guidance, scale by scale.

Shapes: B images, T positions of a scale, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.models.var.network import VAR
from avarc_cli.tokenizers.vqvae import MultiScaleQuantizer


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
    """Tokens (B, L), int64, of one image a class id; `VQVAE.reconstruct` turns them into pictures.

    Args:
        class_id_B: classes, int64.
        guidance: strength g; scale k of K uses (1 + t) conditional - t unconditional logits with t = g k / (K - 1).
        top_k: sample among so many likeliest codes (0: all); top_p: then among the likeliest that hold this much
            probability (0: all).
        generators: one an image, on the model's device: a picture does not depend on the others of its batch.
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
        drawn = [
            torch.multinomial(p, 1, generator=g)[:, 0] for p, g in zip(logits_BTV.softmax(-1), generators, strict=True)
        ]
        tokens.append(torch.stack(drawn))
        latents = latents + quantizer.contribution(k, tokens[-1].unflatten(1, (side, side)))
        if k + 1 < len(sides):
            following = quantizer.shrink(k + 1, latents).flatten(2).transpose(1, 2)
            x = var.embed_scale(k + 1, following).repeat(2, 1, 1)
    return torch.cat(tokens, dim=1)


def stream(seed: int, class_id: int, number: int, device: torch.device) -> torch.Generator:
    """The randomness of picture `number` of a class: it depends on nothing else."""
    state = np.random.SeedSequence([seed, class_id, number]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def restrict(logits_BTV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with everything outside the top k, then outside the nucleus of probability top_p, at -inf."""
    if top_k > 0:
        least = logits_BTV.topk(min(top_k, logits_BTV.shape[-1])).values[..., -1:]
        logits_BTV = logits_BTV.masked_fill(logits_BTV < least, -torch.inf)
    if top_p > 0:
        ordered, index = logits_BTV.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of what is likelier
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, index, before >= top_p)
        logits_BTV = logits_BTV.masked_fill(outside, -torch.inf)
    return logits_BTV
