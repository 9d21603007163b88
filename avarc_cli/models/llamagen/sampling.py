"""Drawing token sequences from a LlamaGen, one token after the other, with classifier-free guidance.

Shapes: B images, L tokens, V codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    kv_cache = KVCache(gpt.config.depth, capacity=gpt.config.ends[-1])
    first = gpt.class_inputs(torch.cat([class_id_B, torch.full_like(class_id_B, gpt.config.num_classes)]))

    def hidden(position: int, before_2B1: Tensor | None) -> Tensor:
        inputs = first if before_2B1 is None else gpt.token_inputs(before_2B1, position)
        return gpt.hidden(inputs, kv_cache)

    return draw_tokens(gpt, hidden, guidance=guidance, top_k=top_k, top_p=top_p, generators=generators)


def draw_tokens(
    gpt: LlamaGen,
    hidden: Callable[[int, Tensor | None], Tensor],
    *,
    guidance: float,
    top_k: int,
    top_p: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Tokens (B, L) of guided logits, one position after the other.

    Args:
        hidden: of a position, the hidden states that score its token, (2B, 1, C): under the conditions, then without
            them. It is given the tokens of the position before, (2B, 1), twice the same; None at the first.
    """
    tokens: list[Tensor] = []
    for position in range(gpt.config.ends[-1]):
        hidden_2B1C = hidden(position, tokens[-1].repeat(2, 1) if tokens else None)
        conditional, unconditional = gpt.output(hidden_2B1C).float().chunk(2)
        logits_B1V = (1 + guidance) * conditional - guidance * unconditional
        tokens.append(draw(restrict(logits_B1V, top_k, top_p), generators))
    return torch.cat(tokens, dim=1)
