"""adaln and gated_residual_adaln against eager and compiled PyTorch, with 100 classes in the table."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from avarc_kernels import adaln, gated_residual_adaln
from avarc_kernels.bench.measure import DEVICE, SIDES, WIDTHS, Call, Case, against, compiled

CLASSES = 100


def definition(x: Tensor, scale: Tensor, shift: Tensor, row: Tensor) -> Tensor:
    """LayerNorm written out, class rows expanded to pairs."""
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return normed * (1 + scale[row][:, None]) + shift[row][:, None]


def cases(dtype: torch.dtype, *, pairs: int, sizes: list[str]) -> Iterator[Case]:
    for size in sizes:
        width, length = WIDTHS[size][0], sum(p * p for p in SIDES)
        x = torch.randn(pairs, length, width, device=DEVICE)  # the stream is float32 in every precision
        y = torch.randn(pairs, length, width, device=DEVICE).to(dtype)
        gate, scale, shift = torch.randn(CLASSES, 3, width, device=DEVICE).unbind(1)
        row = torch.arange(pairs, device=DEVICE) % CLASSES
        args, gated = (x, scale, shift, row), (x, y, gate, scale, shift, row)
        shape = f"{size} P={pairs} T={length} C={width}"
        yield _case("adaln", shape, dtype, x[:1], args, _adaln_calls(args, dtype), 4 + dtype.itemsize)
        stream = x[:1] + gate[row[:1]][:, None] * y[:1].float()
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
    x, scale, shift, row = args
    exact = definition(stream.double(), scale.double(), shift.double(), row[:1])
    plain = definition(stream, scale, shift, row[:1]).to(dtype)
    return Case(
        op=op, shape=shape, dtype=dtype, calls=calls, check=against(exact, plain), traffic=x.numel() * bytes_per_number
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
