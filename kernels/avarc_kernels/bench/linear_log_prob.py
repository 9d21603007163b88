"""linear_log_prob against full logits, eager and compiled, and Liger's fused linear cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from avarc_kernels import linear_log_prob, testing
from avarc_kernels.bench.measure import CHECKED_ROWS, DEVICE, Case, compiled
from avarc_kernels.bench.models import Model


def liger(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """Liger's fused linear cross-entropy, forward."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(reduction="none")(weight, hidden, target, bias)
    return -loss


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    rows, width, vocabulary = pairs * model.positions, model.width, model.vocabulary
    hidden, weight = (torch.randn(n, width, device=DEVICE).to(dtype) for n in (rows, vocabulary))
    weight /= width**0.5 / 2
    bias, target = torch.randn(vocabulary, device=DEVICE).to(dtype), torch.randint(vocabulary, (rows,)).to(DEVICE)
    args = (hidden, weight, bias, target)
    # In half precision the bound allows for logits in the inputs' dtype: the torch backend may round them to it.
    expected, bound = testing.float64_reference(
        testing.linear_log_prob, hidden[:CHECKED_ROWS], weight, bias, target[:CHECKED_ROWS]
    )
    yield Case(
        op="linear_log_prob",
        shape=f"{model.name} M={rows} C={width} V={vocabulary}",
        dtype=dtype,
        calls={
            "triton": partial(linear_log_prob, *args, backend="triton"),
            "torch": partial(linear_log_prob, *args),
            "full logits": partial(testing.linear_log_prob, *args),
            "full logits, compiled": compiled(partial(testing.linear_log_prob, *args)),
            "Liger": partial(liger, *args),
        },
        expected=expected,
        bound=bound,
        flops=2.0 * rows * width * vocabulary,
    )
