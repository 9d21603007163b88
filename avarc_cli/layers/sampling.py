"""Drawing tokens: a random stream for each image, and the usual restrictions of the distribution.

Shapes: B images, T positions, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def generator_of(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random stream of its own for every key, such as (seed, class, number of the image)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def restrict(logits_BTV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with -inf outside the `top_k` likeliest codes, then outside the nucleus of probability `top_p`.

    0 leaves out either restriction. Source of the nucleus: arXiv:1904.09751.
    """
    if top_k > 0:
        least = logits_BTV.topk(min(top_k, logits_BTV.shape[-1])).values[..., -1:]
        logits_BTV = logits_BTV.masked_fill(logits_BTV < least, -torch.inf)
    if top_p > 0:
        ordered, index = logits_BTV.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of the likelier codes
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, index, before >= top_p)
        logits_BTV = logits_BTV.masked_fill(outside, -torch.inf)
    return logits_BTV


def gumbel(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard Gumbel noise in the shape of `like`, each image's from its own generator."""
    uniform = torch.stack(
        [torch.rand(x.shape, generator=g, device=x.device) for x, g in zip(like, generators, strict=True)]
    )
    return -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()


def draw(logits_BTV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """A code for every position (B, T), each image's from its own generator."""
    p_BTV = logits_BTV.softmax(-1)
    return torch.stack([torch.multinomial(p, 1, generator=g)[:, 0] for p, g in zip(p_BTV, generators, strict=True)])
