"""adaln and gated_residual_adaln against eager and compiled PyTorch.

A VAR has a table of classes, here of 100. A RAR has one of positions for each pair, whose rows are in order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from avarc_kernels import adaln, gated_residual_adaln, testing
from avarc_kernels.bench.measure import DEVICE, Call, Case, compiled
from avarc_kernels.bench.models import Model

CLASSES = 100


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    width, by_class = model.width, bool(model.ends)
    sequences, length = (pairs, model.positions) if by_class else (model.positions, 1)
    x = torch.randn(sequences, length, width, device=DEVICE)  # the stream is float32 in every precision
    y = torch.randn(sequences, length, width, device=DEVICE).to(dtype)
    gate, scale, shift = torch.randn(CLASSES if by_class else sequences, 3, width, device=DEVICE).unbind(1)
    row = torch.arange(sequences, device=DEVICE) % len(gate)
    shape = f"{model.name} P={sequences} T={length} C={width}"
    args, gated = (x, scale, shift, row), (x, y, gate, scale, shift, row)
    yield _case("adaln", shape, dtype, x[:1], args, _adaln_calls(args, dtype), 4 + dtype.itemsize)
    stream = testing.gated_residual(x[:1], y[:1].float(), gate, row[:1])
    calls = _gated_calls(gated, dtype)
    yield _case("gated_residual_adaln", shape, dtype, stream, args, calls, 8 + 2 * dtype.itemsize)


def _case(
    op: str,
    shape: str,
    dtype: torch.dtype,
    stream: Tensor,
    args: tuple[Tensor, ...],
    calls: dict[str, Call],
    bytes_per_number: int,
) -> Case:
    """stream: what is normalized, of the first sequence, which is the one that is checked."""
    x, scale, shift, row = args
    expected, bound = testing.float64_reference(testing.adaln, stream, scale, shift, row[:1], result_dtype=dtype)
    return Case(
        op=op,
        shape=shape,
        dtype=dtype,
        calls=calls,
        expected=expected,
        bound=bound,
        traffic=x.numel() * bytes_per_number,
    )


def _adaln_calls(args: tuple[Tensor, ...], dtype: torch.dtype) -> dict[str, Call]:
    return {
        "triton": lambda: adaln(*args, dtype=dtype, backend="triton"),
        "torch": lambda: adaln(*args, dtype=dtype),
        "torch, compiled": compiled(lambda: adaln(*args, dtype=dtype)),
    }


def _gated_calls(args: tuple[Tensor, ...], dtype: torch.dtype) -> dict[str, Call]:
    return {
        "triton": lambda: gated_residual_adaln(*args, dtype=dtype, backend="triton")[1],
        "torch": lambda: gated_residual_adaln(*args, dtype=dtype)[1],
        "torch, compiled": compiled(lambda: gated_residual_adaln(*args, dtype=dtype)[1]),
    }
