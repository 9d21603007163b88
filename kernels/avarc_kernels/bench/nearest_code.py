"""nearest_code against the full matrix of distances, eager and compiled.

The error is that of the distance to the chosen entry, so that either of two equally near entries may be chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from avarc_kernels import nearest_code, testing
from avarc_kernels.bench.measure import DEVICE, Case, compiled
from avarc_kernels.bench.models import Model

CHANNELS = 32  # of VAR's tokenizer


def full_matrix(z: Tensor, codebook: Tensor) -> Tensor:
    """All distances, and the first of the smallest."""
    return testing.squared_distance(z, codebook).argmin(1)


def cases(dtype: torch.dtype, *, pairs: int, model: Model) -> Iterator[Case]:
    if dtype != torch.float32:
        return  # tokens are defined in float32
    latents = pairs * (model.ends[-1] - model.ends[-2])  # those of the last scale
    z, codebook = (torch.randn(n, CHANNELS, device=DEVICE) for n in (latents, model.vocabulary))
    distance, bound = testing.float64_reference(testing.squared_distance, z, codebook)
    yield Case(
        op="nearest_code",
        shape=f"{model.name} N={latents} V={model.vocabulary} Z={CHANNELS}",
        dtype=dtype,
        calls={
            "triton": lambda: nearest_code(z, codebook, backend="triton"),
            "torch": lambda: nearest_code(z, codebook),
            "full matrix": lambda: full_matrix(z, codebook),
            "full matrix, compiled": compiled(lambda: full_matrix(z, codebook)),
        },
        expected=distance.amin(1),
        bound=2 * bound,  # the chosen distance may come out too small by `bound`, and the smallest too large
        compared=lambda index: distance.gather(1, index[:, None])[:, 0],
        flops=2.0 * latents * model.vocabulary * CHANNELS,
    )
