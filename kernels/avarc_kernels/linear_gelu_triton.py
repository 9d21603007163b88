"""`linear_gelu` in Triton: a tiled matmul with bias and GELU in its epilogue."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from avarc_kernels.dispatch import dot_precision, launch

HALF = {"BLOCK_M": 128, "BLOCK_F": 128, "BLOCK_C": 64, "num_warps": 4, "num_stages": 3}  # 96 KiB of shared memory
FULL = {"BLOCK_M": 64, "BLOCK_F": 64, "BLOCK_C": 32, "num_warps": 4, "num_stages": 3}  # 48 KiB


@triton.jit
def _linear_gelu_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    M,
    F,
    C,
    stride_x,
    stride_weight,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One (BLOCK_M, BLOCK_F) tile of a linear layer with GELU [1] in its tanh form:

        a = x @ weight.T + bias
        out = a sigmoid(2 sqrt(2/pi) (a + 0.044715 a^3)), because (1 + tanh(z)) / 2 = sigmoid(2 z)

    References:
        [1] Gaussian Error Linear Units (GELUs), arXiv:1606.08415
    """
    num_pid_m, num_pid_f = tl.cdiv(M, BLOCK_M), tl.cdiv(F, BLOCK_F)
    pid = tl.program_id(0)
    # GROUP_M tiles of rows take the columns together: they share weights in L2.
    first_pid_m = pid // (GROUP_M * num_pid_f) * GROUP_M
    group_size_m = tl.minimum(num_pid_m - first_pid_m, GROUP_M)
    pid_in_group = pid % (GROUP_M * num_pid_f)
    pid_m, pid_f = first_pid_m + pid_in_group % group_size_m, pid_in_group // group_size_m
    m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # int64: M * F can exceed 2**31
    f = pid_f * BLOCK_F + tl.arange(0, BLOCK_F)
    c = tl.arange(0, BLOCK_C)
    mask_m, mask_f = m < M, f < F
    acc = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
    x_ptrs = x_ptr + m[:, None] * stride_x + c[None, :]
    weight_ptrs = weight_ptr + f.to(tl.int64)[None, :] * stride_weight + c[:, None]
    for start in range(0, C, BLOCK_C):
        mask_c = c < C - start
        x = tl.load(x_ptrs, mask=mask_m[:, None] & mask_c[None, :], other=0.0)
        weight = tl.load(weight_ptrs, mask=mask_f[None, :] & mask_c[:, None], other=0.0)
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
        x_ptrs += BLOCK_C
        weight_ptrs += BLOCK_C
    a = acc + tl.load(bias_ptr + f, mask=mask_f, other=0.0).to(tl.float32)[None, :]
    inner = 1.5957691216057308 * (a + 0.044715 * a * a * a)  # 2 sqrt(2/pi)
    out = a / (1.0 + tl.exp(-inner))  # far below zero: a / inf = -0
    out_ptrs = out_ptr + m[:, None] * F + f[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_f[None, :])


def linear_gelu(x_MC: Tensor, weight_FC: Tensor, bias_F: Tensor) -> Tensor:
    """See `linear_gelu.linear_gelu`. Raises: ValueError when C is not contiguous."""
    if x_MC.stride(1) != 1 or weight_FC.stride(1) != 1:
        raise ValueError(f"triton needs contiguous channels: strides are {x_MC.stride()} and {weight_FC.stride()}")
    rows, features = len(x_MC), len(weight_FC)
    out_MF = torch.empty(rows, features, dtype=x_MC.dtype, device=x_MC.device)
    config = FULL if x_MC.dtype == torch.float32 else HALF
    tiles = triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(features, config["BLOCK_F"])
    if tiles:
        launch(
            _linear_gelu_kernel,
            tiles,
            x_MC,
            weight_FC,
            bias_F.contiguous(),
            out_MF,
            rows,
            features,
            x_MC.shape[1],
            x_MC.stride(0),
            weight_FC.stride(0),
            PRECISION=dot_precision(x_MC.dtype),
            GROUP_M=8,
            enable_fp_fusion=True,
            **config,
        )
    return out_MF
