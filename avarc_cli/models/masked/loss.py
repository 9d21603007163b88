"""Training of a model of hidden tokens: some are hidden at random, and the network predicts them (arXiv:2202.04200).

Shapes: B images, L tokens, V codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avarc_cli.objective import StepLoss, token_losses


def random_masks(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Which tokens are hidden, (count, length) bool: at least one, and many more often than few.

    Their fraction is arccos(u) / (pi / 2) for a uniform u, as in the code of 1d-tokenizer.
    """
    ratio_B = torch.rand(count, generator=generator).acos() / (math.pi / 2)
    hidden_B = (length * ratio_B).round().clamp(min=1)
    return torch.rand(count, length, generator=generator).argsort(dim=1).argsort(dim=1) < hidden_B[:, None]


def masked_loss(
    logits_BLV: Tensor,
    tokens_BL: Tensor,
    hidden_BL: Tensor,
    *,
    smoothing: float = 0.0,
    visible: float = 0.0,
    counted: Tensor | None = None,
) -> StepLoss:
    """Mean cross-entropy, and each image's share of hidden tokens that were the likeliest.

    Args:
        counted: what is hidden in the whole batch, of which these rows are a part: the mean over parts, weighted by
            their rows, is then that of the batch. None: these rows are all.
        smoothing: of the labels. The published models were trained with 0.1, which flattens their likelihoods.
        visible: weight of visible tokens; 0.1 in the published training. Hidden ones weigh 1.
    """
    losses_BL, likeliest_BL = token_losses(logits_BLV, tokens_BL, smoothing)
    weight_BL = torch.where(hidden_BL, 1.0, visible)
    accuracy = ((likeliest_BL & hidden_BL).sum(1) / hidden_BL.sum(1)).mean()
    total, weight = (losses_BL * weight_BL).sum(), weight_BL.sum()
    if counted is not None:
        weight = torch.where(counted, 1.0, visible).sum() * len(hidden_BL) / len(counted)
    return StepLoss(total / (weight + 1e-8), accuracy)
