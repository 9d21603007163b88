"""Rotary position embedding: pairs of channels turned by an angle that depends on the position.

Shapes: P sequences, T positions, H heads, D head width, J = D / 2 pairs of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_kernels.dispatch import select_backend


def rotary(x_PTHD: Tensor, table_TJ2: Tensor, *, dtype: torch.dtype | None = None, backend: str = "torch") -> Tensor:
    """Turn adjacent pairs of channels: (x_2j, x_2j+1) -> (x_2j cos - x_2j+1 sin, x_2j+1 cos + x_2j sin).

    Args:
        x_PTHD: queries or keys: float32, bfloat16 or float16; any strides, D contiguous.
        table_TJ2: cosine and sine of each position and pair, float32: the same of all sequences, or (P, T, J, 2). Where
            both are 0, the result is 0.
        dtype: of the result; x's own if None. The arithmetic is float32 for all dtypes.
        backend: "torch", or "triton": one read and one write.
    Returns: (P, T, H, D), contiguous; the error against float64 is at most twice that of the definition in float32,
        before rounding to `dtype`.
    Raises: ValueError when shapes disagree, channels are not contiguous, or the backend cannot run or cannot compute
        the gradients that an input requires.
    Source: arXiv:2104.09864, equation 34.
    """
    angles = (x_PTHD.shape[1], x_PTHD.shape[-1] // 2, 2) if x_PTHD.ndim == 4 else ()
    if table_TJ2.shape not in (angles, (len(x_PTHD), *angles)) or x_PTHD.shape[-1] % 2:
        raise ValueError(f"heads {tuple(x_PTHD.shape)}, table {tuple(table_TJ2.shape)}")
    if select_backend(backend, ("torch", "triton"), x_PTHD, table_TJ2) == "triton":
        from avarc_kernels import rotary_triton

        return rotary_triton.rotary(x_PTHD, table_TJ2, dtype or x_PTHD.dtype)
    exact = x_PTHD if x_PTHD.dtype == torch.float64 else x_PTHD.float()
    turned = _as_complex(exact.unflatten(-1, (-1, 2))) * _as_complex(table_TJ2.to(exact.dtype))[..., None, :]
    return torch.view_as_real(turned).flatten(-2).to(dtype or x_PTHD.dtype)


def _as_complex(x: Tensor) -> Tensor:
    """Pairs in the last dimension as complex numbers; a view where each starts at an even place in memory."""
    even = x.stride(-1) == 1 and not any(place % 2 for place in (x.storage_offset(), *x.stride()[:-1]))
    return torch.view_as_complex(x if even else x.contiguous())
