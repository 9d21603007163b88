"""LayerNorm with a class-wise scale and shift, and the gated residual before it.

Shapes: P sequences (pairs of image and class), T positions, C width, N rows of the class table.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_kernels.dispatch import chosen

EPS = 1e-6  # VAR's, throughout


def adaln(
    x_PTC: Tensor,
    scale_NC: Tensor,
    shift_NC: Tensor,
    row_P: Tensor | None,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "torch",
) -> Tensor:
    """layer_norm(x) * (1 + scale) + shift, where pair p takes row row_P[p] of the class tables.

    Args:
        x_PTC: residual stream: float32, bfloat16 or float16; contiguous for "triton".
        scale_NC, shift_NC: class tables, any floating dtype; any row stride, so views of one (N, 6, C) table will do.
        row_P: each pair's row in them, int64 in [0, N); None when pair p has row p.
        dtype: of the result; x's own when None. The arithmetic is float32 whatever the dtypes.
        backend: "torch", or "triton": one read of x and one write, the tables never expanded to pairs.
    Returns: (P, T, C); at most twice as far from float64 as the definition in float32, then rounded to `dtype`.
    Raises: ValueError when shapes disagree, strides do not suit, or the backend cannot run.
    Source: AdaLN of DiT, arXiv:2212.09748, as VAR (arXiv:2404.02905) uses it; eps is 1e-6.
    """
    _check(x_PTC, (scale_NC, shift_NC), row_P)
    if chosen(backend, ("torch", "triton"), x_PTC) == "triton":
        from avarc_kernels import adaln_triton

        return adaln_triton.adaln(x_PTC, scale_NC, shift_NC, row_P, dtype or x_PTC.dtype)
    x = _exact(x_PTC)
    scale, shift = (_of_pairs(t, row_P).to(x.dtype) for t in (scale_NC, shift_NC))
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
    """x + gate * y, and `adaln` of it: the end of one branch and the start of the next.

    Args: as for `adaln`; y_PTC is the branch's output in any floating dtype, gate_NC a third class table. The gate is
        of this branch, scale and shift are of the next, which may belong to the next block.
    Returns: the new residual stream, in x's dtype, and its adaln, in `dtype`, both (P, T, C); bounds as for `adaln`.
    Raises: ValueError as `adaln` does.
    """
    _check(x_PTC, (gate_NC, scale_NC, shift_NC), row_P)
    if y_PTC.shape != x_PTC.shape:
        raise ValueError(f"the branch is {tuple(y_PTC.shape)}, the stream {tuple(x_PTC.shape)}")
    if chosen(backend, ("torch", "triton"), x_PTC) == "triton":
        from avarc_kernels import adaln_triton

        return adaln_triton.gated_residual_adaln(x_PTC, y_PTC, gate_NC, scale_NC, shift_NC, row_P, dtype or x_PTC.dtype)
    x = _exact(x_PTC)
    gate = _of_pairs(gate_NC, row_P).to(x.dtype)
    x_PTC = torch.addcmul(x, gate, y_PTC.to(x.dtype)).to(x_PTC.dtype)
    return x_PTC, adaln(x_PTC, scale_NC, shift_NC, row_P, dtype=dtype)


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _of_pairs(table_NC: Tensor, row_P: Tensor | None) -> Tensor:
    """The table's row of each pair, (P, 1, C)."""
    return (table_NC if row_P is None else table_NC[row_P])[:, None]


def _check(x_PTC: Tensor, tables: tuple[Tensor, ...], row_P: Tensor | None) -> None:
    if x_PTC.ndim != 3 or any(t.ndim != 2 or t.shape != tables[0].shape for t in tables):
        raise ValueError(f"stream {tuple(x_PTC.shape)}, class tables {[tuple(t.shape) for t in tables]}")
    pairs, _, width = x_PTC.shape
    rows = len(tables[0]) if row_P is None else len(row_P)
    if tables[0].shape[1] != width or rows != pairs:
        raise ValueError(f"class tables {tuple(tables[0].shape)} and {rows} rows for a stream {tuple(x_PTC.shape)}")
