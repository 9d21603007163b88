"""`linear_log_prob` in Triton: the head's matmul with a log-sum-exp in its epilogue.

The vocabulary is split into ranges of SPLIT_V columns. A program takes BLOCK_M rows and one range; PyTorch combines the
log-sum-exps of the ranges afterwards. SPLIT_V is a constant, so a row's result does not depend on the batch size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import dot_precision, launch

SPLIT_V = 512  # one partial log-sum-exp is stored per 512 logits
HALF = {"BLOCK_M": 128, "BLOCK_V": 128, "BLOCK_C": 64, "num_warps": 4, "num_stages": 3}  # 96 KiB of shared memory
FULL = {"BLOCK_M": 64, "BLOCK_V": 64, "BLOCK_C": 32, "num_warps": 4, "num_stages": 3}  # 48 KiB


@triton.jit
def _linear_log_prob_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    lse_ptr,  # (M, splits): log-sum-exp of a program's columns
    target_logit_ptr,  # (M,)
    M,
    V,
    C,
    stride_hidden,
    stride_weight,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Log-sum-exp of BLOCK_M rows over SPLIT_V columns of the logits, and the target's logit if it is among them.

    With logit_iv = hidden_i . weight_v + bias_v, the online softmax [1] updates for every tile of BLOCK_V columns:

        m_i' = max(m_i, max_v logit_iv)
        alpha_i = exp(m_i - m_i')
        l_i' = alpha_i l_i + sum_v exp(logit_iv - m_i')

    and lse_i = m_i + log(l_i). The log-probability is target_logit_i - log sum_splits exp(lse_i).

    References:
        [1] Online normalizer calculation for softmax, arXiv:1805.02867
    """
    num_splits = tl.cdiv(V, SPLIT_V)
    pid = tl.program_id(0)
    split = pid % num_splits  # programs of the same rows run together: they share `hidden` in L2
    m = (pid // num_splits).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # int64: M * C can exceed 2**31
    c = tl.arange(0, BLOCK_C)
    mask_m = m < M
    target = tl.load(target_ptr + m, mask=mask_m, other=-1)
    m_i = tl.full((BLOCK_M,), -float("inf"), tl.float32)  # running maximum
    l_i = tl.zeros((BLOCK_M,), tl.float32)  # running sum of exp(logit - m_i)
    target_logit = tl.zeros((BLOCK_M,), tl.float32)
    for start_v in range(0, SPLIT_V, BLOCK_V):
        v = split * SPLIT_V + start_v + tl.arange(0, BLOCK_V)
        mask_v = v < V
        logits = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
        hidden_ptrs = hidden_ptr + m[:, None] * stride_hidden + c[None, :]
        weight_ptrs = weight_ptr + v.to(tl.int64)[None, :] * stride_weight + c[:, None]
        for start_c in range(0, C, BLOCK_C):
            mask_c = c < C - start_c
            hidden = tl.load(hidden_ptrs, mask=mask_m[:, None] & mask_c[None, :], other=0.0)
            weight = tl.load(weight_ptrs, mask=mask_v[None, :] & mask_c[:, None], other=0.0)
            logits = tl.dot(hidden, weight, logits, input_precision=PRECISION)
            hidden_ptrs += BLOCK_C
            weight_ptrs += BLOCK_C
        if HAS_BIAS:
            logits += tl.load(bias_ptr + v, mask=mask_v, other=0.0).to(tl.float32)[None, :]
        is_target = (v[None, :] == target[:, None]) & mask_v[None, :]
        target_logit += tl.sum(tl.where(is_target, logits, 0.0), 1)
        logits = tl.where(mask_v[None, :], logits, -float("inf"))
        # m_new is finite: the first tile of a split always has a valid column, later tiles may have none.
        m_new = tl.maximum(m_i, tl.max(logits, 1))
        alpha = tl.exp(m_i - m_new)
        l_i = l_i * alpha + tl.sum(tl.exp(logits - m_new[:, None]), 1)
        m_i = m_new
    tl.store(lse_ptr + m * num_splits + split, m_i + tl.log(l_i), mask=mask_m)
    has_target = (target >= split * SPLIT_V) & (target < (split + 1) * SPLIT_V)
    tl.store(target_logit_ptr + m, target_logit, mask=mask_m & has_target)


def linear_log_prob(hidden_MC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, target_M: Tensor) -> Tensor:
    """See `linear_log_prob.linear_log_prob`. Raises: ValueError when C is not contiguous or the dtypes differ."""
    if (
        hidden_MC.ndim != 2
        or hidden_MC.stride(1) != 1
        or weight_VC.stride(1) != 1
        or hidden_MC.dtype != weight_VC.dtype
    ):
        raise ValueError(
            "triton needs two-dimensional inputs of one dtype with contiguous channels: "
            f"hidden {tuple(hidden_MC.shape)} {hidden_MC.dtype} has strides {hidden_MC.stride()}, "
            f"weight {weight_VC.dtype} has strides {weight_VC.stride()}"
        )
    rows, vocabulary = len(hidden_MC), len(weight_VC)
    splits = triton.cdiv(vocabulary, SPLIT_V)
    lse_MS = torch.empty(rows, splits, dtype=torch.float32, device=hidden_MC.device)
    target_logit_M = torch.empty(rows, dtype=torch.float32, device=hidden_MC.device)
    if rows == 0:
        return target_logit_M
    config = FULL if hidden_MC.dtype == torch.float32 else HALF
    launch(
        _linear_log_prob_kernel,
        triton.cdiv(rows, config["BLOCK_M"]) * splits,
        hidden_MC,
        weight_VC,
        hidden_MC if bias_V is None else bias_V.contiguous(),
        target_M.contiguous(),
        lse_MS,
        target_logit_M,
        rows,
        vocabulary,
        hidden_MC.shape[1],
        hidden_MC.stride(0),
        weight_VC.stride(0),
        HAS_BIAS=bias_V is not None,
        PRECISION=dot_precision(hidden_MC.dtype),
        SPLIT_V=SPLIT_V,
        enable_fp_fusion=True,
        **config,
    )
    return (target_logit_M - lse_MS.logsumexp(1)).clamp_(max=0.0)
