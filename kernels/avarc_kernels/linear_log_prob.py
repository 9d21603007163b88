"""Log-probability of given tokens under a linear head.

Shapes: M rows, C width, V vocabulary, R rows of one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_kernels.dispatch import select_backend
from avarc_kernels.linear import linear

CHUNK_LOGITS = 1024 * 4096  # of float32 take 16 MiB: they stay in the cache of a large CPU


def linear_log_prob(
    hidden_MC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, target_M: Tensor, *, backend: str = "torch"
) -> Tensor:
    """log softmax(hidden @ weight.T + bias) at the target, in nats, without storing all (M, V) logits.

    Args:
        hidden_MC: last hidden states: float32, bfloat16 or float16, in the weight's dtype; any row stride.
        weight_VC, bias_V: the head; the bias in any floating dtype.
        target_M: token ids in [0, V), int64.
        backend: "torch" stores `CHUNK_LOGITS` logits at a time. On a CPU, and before PyTorch 2.8, they are
            rounded to the inputs' dtype. "triton" keeps logits in registers in float32 and stores one partial
            log-sum-exp per 512 of them. "onednn" and "avarc" are "torch" with other products (`linear.linear`).
            float32 matmuls use TF32 if torch.backends.cuda.matmul.allow_tf32 is set.
    Returns: log_prob_M, float32, each <= 0; the error against float64 is at most twice that of the definition (logits,
        log_softmax, gather) in float32.
    Raises: ValueError when shapes or dtypes disagree, or when the backend cannot run or cannot compute the gradients
        that an input requires.
    Source: the likelihood of arXiv:2510.12060; online softmax, arXiv:1805.02867.
    """
    bias_shape = (len(weight_VC),) if bias_V is None else tuple(bias_V.shape)
    if (
        hidden_MC.shape[-1] != weight_VC.shape[-1]
        or hidden_MC.shape[:-1] != target_M.shape
        or bias_shape != (len(weight_VC),)
    ):
        raise ValueError(
            f"hidden {tuple(hidden_MC.shape)}, weight {tuple(weight_VC.shape)}, bias {bias_shape}, "
            f"target {tuple(target_M.shape)}"
        )
    if select_backend(backend, ("torch", "onednn", "avarc", "triton"), hidden_MC, weight_VC, bias_V) == "triton":
        from avarc_kernels import linear_log_prob_triton

        return linear_log_prob_triton.linear_log_prob(hidden_MC, weight_VC, bias_V, target_M)
    log_prob_M = torch.empty(target_M.shape, dtype=torch.float32, device=hidden_MC.device)
    chunk_rows = max(1, CHUNK_LOGITS // len(weight_VC))
    for start in range(0, len(target_M), chunk_rows):
        rows = slice(start, start + chunk_rows)
        logits_RV = _logits(hidden_MC[rows], weight_VC, bias_V, backend)
        target_logit_R = logits_RV.gather(-1, target_M[rows, None]).squeeze(-1)
        log_prob_M[rows] = target_logit_R - logits_RV.logsumexp(-1)
    return log_prob_M.clamp_(max=0.0)  # rounding can give +1e-7 when one token has all the probability


def _logits(hidden_RC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, backend: str) -> Tensor:
    """hidden @ weight.T + bias, (R, V) float32."""
    if hidden_RC.is_cuda and hidden_RC.dtype in (torch.bfloat16, torch.float16) and hasattr(torch.ops.aten.mm, "dtype"):
        logits_RV = torch.mm(hidden_RC, weight_VC.T, out_dtype=torch.float32)
        return logits_RV if bias_V is None else logits_RV.add_(bias_V)
    return linear(hidden_RC, weight_VC, bias_V, backend=backend).float()
