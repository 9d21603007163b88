"""linear_log_prob against full logits, eager and compiled, and Liger's fused linear cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from avarc_kernels import linear_log_prob
from avarc_kernels.bench.measure import DEVICE, SIDES, VOCABULARY, WIDTHS, Case, against, compiled

CHECKED = 1024  # rows in float64


def definition(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """What a straightforward implementation does: all logits, their log-softmax, one number a row."""
    return (hidden @ weight.T + bias).log_softmax(-1).gather(-1, target[:, None])[:, 0]


def liger(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """Liger's fused linear cross-entropy, forward."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(reduction="none")(weight, hidden, target, bias)
    return -loss


def cases(dtype: torch.dtype, *, pairs: int, sizes: list[str]) -> Iterator[Case]:
    rows = pairs * sum(p * p for p in SIDES)
    for size in sizes:
        width = WIDTHS[size][0]
        hidden, weight = (torch.randn(n, width, device=DEVICE).to(dtype) for n in (rows, VOCABULARY))
        weight /= width**0.5 / 2
        bias, target = torch.randn(VOCABULARY, device=DEVICE).to(dtype), torch.randint(VOCABULARY, (rows,)).to(DEVICE)
        args = (hidden, weight, bias, target)
        few = (hidden[:CHECKED].double(), weight.double(), bias.double(), target[:CHECKED])
        exact = definition(*few)
        plain = definition(few[0].float(), few[1].float(), few[2].float(), few[3])
        if dtype != torch.float32:  # the torch backend rounds logits to the inputs' dtype, as eager PyTorch does
            plain = torch.maximum((plain - exact).abs(), (definition(*_cut(args)) - exact).abs()) + exact
        yield Case(
            op="linear_log_prob",
            shape=f"{size} M={rows} C={width} V={VOCABULARY}",
            dtype=dtype,
            calls={
                "triton": partial(linear_log_prob, *args, backend="triton"),
                "torch": partial(linear_log_prob, *args),
                "full logits": partial(definition, *args),
                "full logits, compiled": compiled(partial(definition, *args)),
                "Liger": partial(liger, *args),
            },
            check=against(exact, plain),
            flops=2.0 * rows * width * VOCABULARY,
        )


def _cut(args: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return args[0][:CHECKED], args[1], args[2], args[3][:CHECKED]
