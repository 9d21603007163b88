"""Drawing token sequences from a LlamaGen, one token after the other, with classifier-free guidance.

Shapes: B images, L tokens, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.layers.sampling import restrict
from avarc_cli.models.llamagen.network import LlamaGen


@torch.inference_mode()
def sample(
    gpt: LlamaGen,
    class_id_B: Tensor,
    *,
    guidance: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Tokens (B, L) int64, one image for each class id; arguments as `LikelihoodModel.sample`.

    Every token is drawn from (1 + guidance) conditional - guidance unconditional logits. The reference's scale s is
    1 + guidance.
    """
    length = gpt.config.ends[-1]
    both_2B = torch.cat([class_id_B, torch.full_like(class_id_B, gpt.config.num_classes)])
    kv_cache, tokens = KVCache(gpt.config.depth, capacity=length), []
    x_2B1C = gpt.embed_class(both_2B)
    for position in range(length):
        hidden = gpt.hidden(x_2B1C, gpt.first_qkv(x_2B1C, position), position, kv_cache)
        conditional, unconditional = gpt.output(hidden).float().chunk(2)
        logits_B1V = restrict((1 + guidance) * conditional - guidance * unconditional, top_k, top_p)
        drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(logits_B1V.softmax(-1), generators, strict=True)]
        tokens.append(torch.cat(drawn))
        x_2B1C = gpt.embed_tokens(tokens[-1]).repeat(2, 1, 1)
    return torch.cat(tokens, dim=1)
