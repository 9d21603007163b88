"""What tests of models of hidden tokens share: scoring pairs, and what is computed by hand from all masks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from avarc_cli.likelihood import LikelihoodModel


def scored(
    model: LikelihoodModel, tokens: Tensor, classes: Tensor, stops: Sequence[int], order: Tensor | None = None
) -> Tensor:
    """Token log-probabilities of all pairs (images, classes, L) in the order of scoring, extended to each stop."""
    pairs = torch.cartesian_prod(torch.arange(len(tokens)), classes)
    state = model.begin(tokens, pairs[:, 0], pairs[:, 1], None if order is None else order.expand(len(tokens), -1))
    blocks = [model.extend(state, stop, keep_cache_segments=stop) for stop in stops]
    return torch.cat(blocks, dim=1).view(len(tokens), len(classes), -1)


def total_probability(model: LikelihoodModel, codes: int, classes: Tensor, order: Tensor) -> Tensor:
    """The probabilities of all sequences of these codes along an order, summed, (classes,) float64."""
    tokens = torch.tensor(list(itertools.product(range(codes), repeat=order.shape[-1])))
    stops = (len(model.segment_ends),)
    return scored(model, tokens, classes, stops, order).double().sum(-1).exp().sum(0)


def given_then_hidden(hidden: Sequence[int], length: int) -> Tensor:
    """The order of a draw of the bound that hides these positions."""
    return torch.tensor([*(~p for p in range(length) if p not in hidden), *hidden])


def mean_bound(length: int, draw: Callable[[tuple[int, ...]], float]) -> float:
    """E over n uniform on 1 .. length and over all masks that hide n tokens, of `draw` of the hidden positions."""
    return sum(
        draw(hidden) / math.comb(length, n) / length
        for n in range(1, length + 1)
        for hidden in itertools.combinations(range(length), n)
    )
