"""Log-probability of given tokens under a linear head. Shapes: M rows, C width, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS_IN_FLIGHT = 1024  # 1024 x 4096 float32 logits are 16 MiB: they stay in the cache of a large CPU


def linear_log_prob(hidden_MC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, target_M: Tensor) -> Tensor:
    """log softmax(hidden @ weight.T + bias) at the target, in nats, never holding all (M, V) logits.

    Rows are taken `ROWS_IN_FLIGHT` at a time, so the peak is that many rows of logits.

    Args:
        hidden_MC: last hidden states, in the head's dtype.
        weight_VC, bias_V: the head.
        target_M: token ids in [0, V), int64.
    Returns: log_prob_M, float32, each <= 0.
    Raises: ValueError when shapes disagree.
    """
    if hidden_MC.shape[-1] != weight_VC.shape[-1] or hidden_MC.shape[:-1] != target_M.shape:
        raise ValueError(
            f"hidden {tuple(hidden_MC.shape)}, weight {tuple(weight_VC.shape)}, target {tuple(target_M.shape)}"
        )
    log_prob_M = torch.empty(target_M.shape, dtype=torch.float32, device=hidden_MC.device)
    for start in range(0, len(target_M), ROWS_IN_FLIGHT):
        rows = slice(start, start + ROWS_IN_FLIGHT)
        logits_RV = F.linear(hidden_MC[rows], weight_VC, bias_V).float()
        at_target_R = logits_RV.gather(-1, target_M[rows, None]).squeeze(-1)
        log_prob_M[rows] = at_target_R - logits_RV.logsumexp(-1)
    return log_prob_M.clamp_(max=0.0)  # rounding can leave +1e-7 where one token has all the probability
