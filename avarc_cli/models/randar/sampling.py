"""Drawing token sequences from a RandAR: several tokens a step, in a random order, with classifier-free guidance.

Shapes: B images, L tokens, T positions, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.layers.sampling import draw, restrict
from avarc_cli.models.randar.network import RandAR, steps

STEPS, OF_TOKENS = 88, 256  # of the published models


def default_steps(length: int) -> int:
    """Passes for this number of tokens: as many for each as the published models use."""
    return max(1, round(length * STEPS / OF_TOKENS))


@torch.inference_mode()
def sample(
    gpt: RandAR,
    class_id_B: Tensor,
    *,
    generators: Sequence[torch.Generator],
    guidance: float = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    order_BL: Tensor | None = None,
    step_count: int | None = None,
) -> Tensor:
    """Tokens (B, L) int64, one image for each class id; arguments as `LikelihoodModel.sample`.

    Tokens are drawn from (1 + t) conditional - t unconditional logits with t = guidance * (tokens drawn before) / L.
    The tokens of one step are drawn independently: their instructions stand side by side, and the cache keeps only the
    first one. The next step evaluates the others again, each followed by its token, as in the sequence that is scored.

    Args:
        order_BL: cells in the order of drawing; None for a random order from each image's generator.
        step_count: passes of the network; None for `default_steps`.
    """
    length, device = gpt.config.ends[-1], class_id_B.device
    if order_BL is None:
        order_BL = torch.stack([torch.randperm(length, generator=g, device=device) for g in generators])
    order_2BL = order_BL.repeat(2, 1)
    tokens_BL = torch.zeros_like(order_BL)  # in the order of drawing
    kv_cache, done = KVCache(gpt.config.depth, capacity=2 * length), 0
    for count in block_sizes(length, step_count or default_steps(length)):
        step_T, asks_T = steps(kv_cache.length, 2 * done + 1, device)
        step_T = torch.cat([step_T, torch.arange(done, done + count, device=device)])
        asks_T = torch.cat([asks_T, torch.ones(count, dtype=torch.bool, device=device)])
        inputs = gpt.step_inputs(order_2BL, tokens_BL.repeat(2, 1), step_T, asks_T)
        if done == 0:
            both_2B = torch.cat([class_id_B, torch.full_like(class_id_B, gpt.config.num_classes)])
            inputs = inputs.after(gpt.class_inputs(both_2B))
        kv_cache.limit = 2 * done + 2
        hidden = gpt.hidden(inputs, kv_cache, returned=slice(-count, None))
        conditional, unconditional = gpt.output(hidden).float().chunk(2)
        t = guidance * done / length
        logits_BTV = restrict((1 + t) * conditional - t * unconditional, top_k, top_p)
        tokens_BL[:, done : done + count] = draw(logits_BTV, generators)
        done += count
    return torch.empty_like(tokens_BL).scatter_(1, order_BL, tokens_BL)


def block_sizes(length: int, step_count: int) -> list[int]:
    """Tokens that each step draws: one at first, more and more along a cosine, until all `length` are drawn.

    There can be fewer steps than `step_count`, which then was more than the cosine fills.
    """
    sizes, step = [1], 0
    while (done := sum(sizes)) < length:
        step += 1
        target = min(math.floor((1 - math.cos(math.pi / 2 * (step + 1) / step_count)) * length + 1), length)
        sizes.append(min(max(target - done, 1), length - done))
    return sizes
