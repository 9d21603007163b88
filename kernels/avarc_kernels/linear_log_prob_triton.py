"""`linear_log_prob` in Triton: the head's product with a log-sum-exp for an epilogue.

A program takes BLOCK_M rows and COLUMNS of the vocabulary, which it walks in tiles of BLOCK_V with an online softmax;
the partial log-sum-exps of all programs of a row are added afterwards. COLUMNS depends on nothing, so a row's result
does not depend on the rows beside it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import dot_precision

COLUMNS = 512  # of the vocabulary, a program: partials are 1/512 of the logits
HALF = {"BLOCK_M": 128, "BLOCK_V": 128, "BLOCK_C": 64, "num_warps": 8, "num_stages": 3}  # 96 KiB of shared memory
FULL = {"BLOCK_M": 64, "BLOCK_V": 64, "BLOCK_C": 32, "num_warps": 4, "num_stages": 3}  # 48 KiB


@triton.jit
def _linear_log_prob_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    partial_ptr,  # (M, programs along V): log-sum-exp of a program's columns
    at_target_ptr,  # (M,): the target's logit
    M,
    V,
    C,
    stride_hidden,
    stride_weight,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """log sum_v exp(hidden @ weight_v + bias_v) over COLUMNS columns, and the target's logit where it is among them."""
    ranges = tl.cdiv(V, COLUMNS)
    pid = tl.program_id(0)
    part = pid % ranges  # programs of the same rows run together: they share `hidden` in L2
    m = (pid // ranges).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # int64: M * C passes 2**31
    c = tl.arange(0, BLOCK_C)
    row_ok = m < M
    target = tl.load(target_ptr + m, mask=row_ok, other=-1)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)  # running maximum
    total = tl.zeros((BLOCK_M,), tl.float32)  # sum of exp(logit - top)
    at_target = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, COLUMNS, BLOCK_V):
        v = part * COLUMNS + start + tl.arange(0, BLOCK_V)
        column_ok = v < V
        logits = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
        hidden_ptrs = hidden_ptr + m[:, None] * stride_hidden + c[None, :]
        weight_ptrs = weight_ptr + v.to(tl.int64)[None, :] * stride_weight + c[:, None]
        for first in range(0, C, BLOCK_C):
            channel_ok = c < C - first
            hidden = tl.load(hidden_ptrs, mask=row_ok[:, None] & channel_ok[None, :], other=0.0)
            weight = tl.load(weight_ptrs, mask=column_ok[None, :] & channel_ok[:, None], other=0.0)
            logits = tl.dot(hidden, weight, logits, input_precision=PRECISION)
            hidden_ptrs += BLOCK_C
            weight_ptrs += BLOCK_C
        if HAS_BIAS:
            logits += tl.load(bias_ptr + v, mask=column_ok, other=0.0).to(tl.float32)[None, :]
        is_target = (v[None, :] == target[:, None]) & column_ok[None, :]
        at_target += tl.sum(tl.where(is_target, logits, 0.0), 1)
        logits = tl.where(column_ok[None, :], logits, -float("inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        # A tile past the vocabulary has no finite entry; the first tile of a program always has one.
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(logits - new_top[:, None]), 1)
        top = new_top
    tl.store(partial_ptr + m * ranges + part, top + tl.log(total), mask=row_ok)
    mine = (target >= part * COLUMNS) & (target < (part + 1) * COLUMNS)
    tl.store(at_target_ptr + m, at_target, mask=row_ok & mine)


def linear_log_prob(hidden_MC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, target_M: Tensor) -> Tensor:
    """See `likelihood.linear_log_prob`. Raises: ValueError when C is not contiguous or the dtypes differ."""
    if (
        hidden_MC.ndim != 2
        or hidden_MC.stride(1) != 1
        or weight_VC.stride(1) != 1
        or hidden_MC.dtype != weight_VC.dtype
    ):
        raise ValueError(
            f"hidden {tuple(hidden_MC.shape)} {hidden_MC.dtype} strides {hidden_MC.stride()}, weight "
            f"{weight_VC.dtype} strides {weight_VC.stride()}: triton wants two dimensions, the last one "
            "contiguous, and one dtype"
        )
    rows, vocabulary = len(hidden_MC), len(weight_VC)
    ranges = triton.cdiv(vocabulary, COLUMNS)
    partial_MR = torch.empty(rows, ranges, dtype=torch.float32, device=hidden_MC.device)
    at_target_M = torch.empty(rows, dtype=torch.float32, device=hidden_MC.device)
    if rows == 0:
        return at_target_M
    config = FULL if hidden_MC.dtype == torch.float32 else HALF
    _linear_log_prob_kernel[(triton.cdiv(rows, config["BLOCK_M"]) * ranges,)](
        hidden_MC,
        weight_VC,
        hidden_MC if bias_V is None else bias_V.contiguous(),
        target_M.contiguous(),
        partial_MR,
        at_target_M,
        rows,
        vocabulary,
        hidden_MC.shape[1],
        hidden_MC.stride(0),
        weight_VC.stride(0),
        HAS_BIAS=bias_V is not None,
        PRECISION=dot_precision(hidden_MC.dtype),
        COLUMNS=COLUMNS,
        enable_fp_fusion=True,
        **config,
    )
    return (at_target_M - partial_MR.logsumexp(1)).clamp_(max=0.0)
