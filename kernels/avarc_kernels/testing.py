"""What the tests and the benchmark compare the operations with: their definitions, and how large an error may be.

Definitions are written for clarity and compute in the dtype of their inputs; most have the name of their operation.
Evaluated in float64, they give the expected result. The rule for the error, after flash-attention's tests: at most
twice that of the same definition in the dtype of the inputs, plus 1e-6 and the rounding of float32 where results are
large: four units in the last place of the largest.

`quantize_rows` has no definition here: its contract is a bound on |x - q * scale|, and equal bits in all backends.
Shapes are those of each operation's own module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight_FC: Tensor, bias_F: Tensor | None) -> Tensor:
    """A product and a sum."""
    product = x @ weight_FC.T
    return product if bias_F is None else product + bias_F


def linear_log_prob(hidden_MC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, target_M: Tensor) -> Tensor:
    """All logits, their log-softmax, and its entry at the target."""
    logits_MV = hidden_MC @ weight_VC.T
    if bias_V is not None:
        logits_MV = logits_MV + bias_V
    return logits_MV.log_softmax(-1).gather(-1, target_M[:, None]).squeeze(-1)


def block_causal_attention(
    q_PHTD: Tensor, k_PHSD: Tensor, v_PHSD: Tensor, ends: Sequence[int], scale: float, gain_H: Tensor | None = None
) -> Tensor:
    """All products of queries and keys, a mask, a softmax."""
    new, total = q_PHTD.shape[2], k_PHSD.shape[2]
    visible = [total - new + next(end for end in ends if end > t) for t in range(new)]
    visible_T = torch.tensor(visible, device=q_PHTD.device)
    masked_TS = torch.arange(total, device=q_PHTD.device) >= visible_T[:, None]
    if gain_H is not None:
        q_PHTD, k_PHSD = _normalized(q_PHTD, gain_H[:, None, None]), _normalized(k_PHSD)
    weights_PHTS = ((q_PHTD @ k_PHSD.mT) * scale).masked_fill(masked_TS, -torch.inf).softmax(-1)
    return weights_PHTS @ v_PHSD


def _normalized(x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """gain * x / |x|, in at least float32 and rounded to x's dtype."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).clamp_min(1e-12)
    normalized: Tensor = exact / norm * gain
    return normalized.to(x.dtype)


def adaln(x_PTC: Tensor, scale_NC: Tensor, shift_NC: Tensor, row_P: Tensor | None) -> Tensor:
    """LayerNorm written out, and the class tables expanded to sequences."""
    rows = slice(None) if row_P is None else row_P
    centered = x_PTC - x_PTC.mean(-1, keepdim=True)
    normalized = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return normalized * (1 + scale_NC[rows][:, None]) + shift_NC[rows][:, None]


def gated_residual(x_PTC: Tensor, y_PTC: Tensor, gate_NC: Tensor, row_P: Tensor | None) -> Tensor:
    """The first result of `gated_residual_adaln`; the second is its `adaln`."""
    return x_PTC + gate_NC[slice(None) if row_P is None else row_P][:, None] * y_PTC


def causal_attention(q_PHTD: Tensor, k_PGSD: Tensor, v_PGSD: Tensor, scale: float) -> Tensor:
    """All products of queries and keys, a mask, a softmax; key heads repeated for their queries."""
    repeats, new = q_PHTD.shape[1] // k_PGSD.shape[1], q_PHTD.shape[2]
    k_PHSD, v_PHSD = (x.repeat_interleave(repeats, dim=1) for x in (k_PGSD, v_PGSD))
    return block_causal_attention(q_PHTD, k_PHSD, v_PHSD, range(1, new + 1), scale)


def rms_norm(x_MC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """RMSNorm written out."""
    return x_MC / (x_MC.square().mean(-1, keepdim=True) + eps).sqrt() * weight_C


def head_layer_norm(x_PTHD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """LayerNorm written out."""
    centered = x_PTHD - x_PTHD.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * weight_D + bias_D


def rotary(x_PTHD: Tensor, table_TJ2: Tensor) -> Tensor:
    """Adjacent channels as the two coordinates of a point, turned."""
    a, b = x_PTHD[..., 0::2], x_PTHD[..., 1::2]
    cos, sin = (table_TJ2[..., None, :, i] for i in (0, 1))
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def swiglu(a_MF: Tensor, b_MF: Tensor) -> Tensor:
    """The gate written out."""
    return a_MF * a_MF.sigmoid() * b_MF


def linear_gelu(x_MC: Tensor, weight_FC: Tensor, bias_F: Tensor) -> Tensor:
    """Matmul, bias, and PyTorch's GELU: 0.5 a (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3)))."""
    return F.gelu(x_MC @ weight_FC.T + bias_F, approximate="tanh")


def squared_distance(z_NZ: Tensor, codebook_VZ: Tensor) -> Tensor:
    """Of every vector to every codebook entry, (N, V). `nearest_code` is its argmin."""
    return z_NZ.square().sum(1, keepdim=True) + codebook_VZ.square().sum(1) - 2 * z_NZ @ codebook_VZ.T


def float64_reference(
    definition: Callable[..., Tensor],
    *args: Any,
    compute_dtype: torch.dtype | None = None,
    result_dtype: torch.dtype | None = None,
) -> tuple[Tensor, float]:
    """What the definition gives for these arguments, and the error allowed to an implementation.

    Args:
        definition: a function of this module.
        args: its arguments, in the dtypes that the implementation gets.
        compute_dtype: dtype of the floating-point arguments when PyTorch's own error is measured; None: as they are.
            float32 for operations that compute in float32 whatever their inputs.
        result_dtype: dtype that PyTorch's own result is rounded to; None: not rounded.
    Returns: the result in float64, and 2 * max |PyTorch's own result - float64| + 1e-6 + 4 eps max |result|, with
        float32's eps.
    """
    exact = definition(*(_as_dtype(arg, torch.float64) for arg in args))
    own = definition(*(_as_dtype(arg, compute_dtype) for arg in args)).to(result_dtype)
    rounding = 4 * torch.finfo(torch.float32).eps * max_error(exact, torch.zeros_like(exact))
    return exact, 2 * max_error(own, exact) + 1e-6 + rounding


def _as_dtype(arg: Any, dtype: torch.dtype | None) -> Any:
    return arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() else arg


def max_error(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected|; 0 for empty tensors, nan where any entry is."""
    return (actual.double() - expected.double()).abs().max().item() if actual.numel() else 0.0


def assert_within(actual: Tensor, expected: Tensor, bound: float, *, op: str) -> None:
    """Check that no element of `actual` is further than `bound` from `expected`.

    Raises: AssertionError naming the operation, shape and dtype, and the index, values and error of the worst element.
    """
    of_op = f"{op} {tuple(actual.shape)} {str(actual.dtype).removeprefix('torch.')}"
    if actual.shape != expected.shape:
        raise AssertionError(f"{of_op}: expected shape {tuple(expected.shape)}")
    if max_error(actual, expected) <= bound:
        return
    error = (actual.double() - expected.double()).abs()
    worst = int(error.argmax())  # a nan counts as the largest
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    raise AssertionError(
        f"{of_op}: element {index} is {actual[index].item()}, expected {expected[index].item()}: "
        f"error {error[index].item():.3g}, allowed {bound:.3g} ({int((~(error <= bound)).sum())} of {error.numel()} "
        "elements exceed it)"
    )
