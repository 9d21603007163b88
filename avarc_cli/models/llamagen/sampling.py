"""Drawing token sequences from a LlamaGen, one token after the other, with classifier-free guidance.

Shapes: B images, L tokens, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.layers.sampling import draw, restrict
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
    inputs = gpt.class_inputs(both_2B)
    for position in range(1, length + 1):
        conditional, unconditional = gpt.output(gpt.hidden(inputs, kv_cache)).float().chunk(2)
        logits_B1V = (1 + guidance) * conditional - guidance * unconditional
        tokens.append(draw(restrict(logits_B1V, top_k, top_p), generators))
        inputs = gpt.token_inputs(tokens[-1].repeat(2, 1), position)
    return torch.cat(tokens, dim=1)
