"""Sampling from VAR with classifier-free guidance, scale by scale.

Shapes: B images, T positions of a scale, V codes, Z latent channels, h latent side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.layers.sampling import draw, gumbel, restrict
from avarc_cli.likelihood import Known
from avarc_cli.models.var.network import VAR
from avarc_cli.tokenizers.vqvae.network import MultiScaleQuantizer


def sample(
    var: VAR,
    quantizer: MultiScaleQuantizer,
    class_id_B: Tensor,
    *,
    generators: Sequence[torch.Generator],
    **options: Any,
) -> Tensor:
    """Tokens (B, L) int64, one image for each class id; arguments as `draw_scales`."""
    return draw_scales(var, quantizer, class_id_B, generators=generators, **options)[0]


@torch.inference_mode()
def draw_scales(
    var: VAR,
    quantizer: MultiScaleQuantizer,
    class_id_B: Tensor,
    *,
    guidance: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    generators: Sequence[torch.Generator],
    known: Known | None = None,
    smooth: bool = False,
) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) int64, one image for each class id, and the latents that they make, (B, Z, h, h).

    Scale k of K (from 0) uses (1 + t) conditional - t unconditional logits with t = guidance * k / (K - 1). Known
    tokens replace what was drawn before the next scale is, as in the reference's zero-shot editing.

    Args:
        smooth: make the latents, which the following scales read as well, of a `mixture` in place of each code.
        others: as `LikelihoodModel.sample`.
    """
    sides, batch = var.config.patch_nums, len(class_id_B)
    both_2B = torch.cat([class_id_B, torch.full_like(class_id_B, var.config.num_classes)])
    condition = var.condition(both_2B)
    x, tokens = var.embed_start(both_2B), list[Tensor]()
    kv_cache = KVCache(var.config.depth, capacity=var.config.ends[-1])
    latents = torch.zeros(batch, quantizer.embedding.embedding_dim, sides[-1], sides[-1], device=var.pos_1LC.device)
    own = None if known is None else [each.split([p * p for p in sides]) for each in known.on(latents.device)]
    for k, side in enumerate(sides):
        hidden = var.hidden(x, condition, [side * side], kv_cache)
        conditional, unconditional = var.head(hidden).float().chunk(2)
        t = guidance * k / max(len(sides) - 1, 1)
        logits_BTV = restrict((1 + t) * conditional - t * unconditional, top_k, top_p)
        drawn_BT = draw(logits_BTV, generators)
        codes, vectors_BTZ = quantizer.embedding, quantizer.embedding(drawn_BT)
        if smooth:
            vectors_BTZ = mixture(logits_BTV, k / max(len(sides) - 1, 1), codes.weight, generators)
        if own is not None:
            tokens_T, kept_T = own[0][k], own[1][k]
            drawn_BT = torch.where(kept_T, tokens_T, drawn_BT)
            vectors_BTZ = torch.where(kept_T[:, None], codes(tokens_T), vectors_BTZ)
        tokens.append(drawn_BT)
        latents = latents + quantizer.contribution_of(k, vectors_BTZ.unflatten(1, (side, side)))
        if k + 1 < len(sides):
            following = quantizer.shrink(k + 1, latents).flatten(2).transpose(1, 2)
            x = var.embed_scale(k + 1, following).repeat(2, 1, 1)
    return torch.cat(tokens, dim=1), latents


def mixture(logits_BTV: Tensor, done: float, codes_VZ: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Vectors of codes, mixed with weights of a Gumbel-softmax (arXiv:1611.01144), (B, T, Z): VAR's "more smooth".

    Args:
        logits_BTV: guided and restricted; a code of -inf has no part in the mixture.
        done: the scale's number divided by that of the last one, from 0 to 1.
    """
    temperature = max(0.27 * (1 - 0.95 * done), 0.005)
    weights_BTV = ((logits_BTV * (1 + done) + gumbel(logits_BTV, generators)) / temperature).softmax(-1)
    return weights_BTV @ codes_VZ
