"""LayerNorm with a class-wise scale and shift, and the gated residual before it.

Shapes: P sequences (pairs of image and class), T positions, C width, N rows of the class tables.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_kernels.dispatch import select_backend

EPS = 1e-6  # of every LayerNorm in VAR


def adaln(
    x_PTC: Tensor,
    scale_NC: Tensor,
    shift_NC: Tensor,
    row_P: Tensor | None,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "torch",
) -> Tensor:
    """layer_norm(x) * (1 + scale) + shift, where sequence p takes row row_P[p] of the class tables.

    Args:
        x_PTC: residual stream: float32, bfloat16 or float16; contiguous for "triton".
        scale_NC, shift_NC: class tables in any floating dtype, with any row stride: they may be views of one
            (N, 6, C) table.
        row_P: row of each sequence in the tables, int64 in [0, N); None if sequence p uses row p.
        dtype: of the result; x's own if None. The arithmetic is float32 for all dtypes.
        backend: "torch", or "triton": one read of x and one write, without expanding the tables to sequences.
    Returns: (P, T, C); the error against float64 is at most twice that of the definition in float32, before rounding
        to `dtype`.
    Raises: ValueError when shapes disagree, strides are unsupported, or the backend cannot run or cannot compute the
        gradients that an input requires.
    Source: AdaLN of DiT (arXiv:2212.09748) as used in VAR (arXiv:2404.02905).
    """
    _check(x_PTC, (scale_NC, shift_NC), row_P)
    if select_backend(backend, ("torch", "triton"), x_PTC, scale_NC, shift_NC) == "triton":
        from avarc_kernels import adaln_triton

        return adaln_triton.adaln(x_PTC, scale_NC, shift_NC, row_P, dtype or x_PTC.dtype, EPS)
    x = _at_least_float32(x_PTC)
    scale, shift = (_per_sequence(table, row_P).to(x.dtype) for table in (scale_NC, shift_NC))
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale).to(dtype or x_PTC.dtype)


def gated_residual_adaln(
    x_PTC: Tensor,
    y_PTC: Tensor,
    gate_NC: Tensor,
    scale_NC: Tensor,
    shift_NC: Tensor,
    row_P: Tensor | None,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "torch",
) -> tuple[Tensor, Tensor]:
    """x + gate * y and its `adaln`: the end of one residual branch and the start of the next.

    Args: as for `adaln`, and y_PTC, the branch's output in any floating dtype, and gate_NC, a third class table. The
        gate belongs to this branch, scale and shift to the next one, which may be in the next block.
    Returns: the new residual stream in x's dtype, and its adaln in `dtype`, both (P, T, C); error bounds as `adaln`.
    Raises: ValueError as `adaln` does.
    """
    _check(x_PTC, (gate_NC, scale_NC, shift_NC), row_P)
    if y_PTC.shape != x_PTC.shape:
        raise ValueError(f"the branch is {tuple(y_PTC.shape)}, the stream {tuple(x_PTC.shape)}")
    if select_backend(backend, ("torch", "triton"), x_PTC, y_PTC, gate_NC, scale_NC, shift_NC) == "triton":
        from avarc_kernels import adaln_triton

        return adaln_triton.gated_residual_adaln(
            x_PTC, y_PTC, gate_NC, scale_NC, shift_NC, row_P, dtype or x_PTC.dtype, EPS
        )
    x = _at_least_float32(x_PTC)
    gate = _per_sequence(gate_NC, row_P).to(x.dtype)
    x_PTC = torch.addcmul(x, gate, y_PTC.to(x.dtype)).to(x_PTC.dtype)
    return x_PTC, adaln(x_PTC, scale_NC, shift_NC, row_P, dtype=dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _per_sequence(table_NC: Tensor, row_P: Tensor | None) -> Tensor:
    """The table row of each sequence, (P, 1, C)."""
    return (table_NC if row_P is None else table_NC[row_P])[:, None]


def _check(x_PTC: Tensor, tables: tuple[Tensor, ...], row_P: Tensor | None) -> None:
    if x_PTC.ndim != 3 or any(t.ndim != 2 or t.shape != tables[0].shape for t in tables):
        raise ValueError(f"stream {tuple(x_PTC.shape)}, class tables {[tuple(t.shape) for t in tables]}")
    sequences, _, width = x_PTC.shape
    rows = len(tables[0]) if row_P is None else len(row_P)
    if tables[0].shape[1] != width or rows != sequences:
        raise ValueError(f"class tables {tuple(tables[0].shape)} and {rows} rows for a stream {tuple(x_PTC.shape)}")
