"""nearest_code against the full matrix of distances, eager and compiled. The error is the share of other entries."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from avarc_kernels import nearest_code
from avarc_kernels.bench.measure import DEVICE, SIDES, VOCABULARY, Case, compiled

CHANNELS, LATENTS = 32, SIDES[-1] ** 2  # of VAR's tokenizer: the last scale
NEAR_TIES = 1e-3  # share of vectors whose two nearest entries float32 may confuse


def definition(z: Tensor, codebook: Tensor) -> Tensor:
    """All distances, and the first of the least."""
    return (z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T).argmin(1)


def cases(dtype: torch.dtype, *, pairs: int, sizes: list[str]) -> Iterator[Case]:
    if dtype != torch.float32:
        return  # tokens are defined in float32
    z, codebook = torch.randn(pairs * LATENTS, CHANNELS, device=DEVICE), torch.randn(VOCABULARY, CHANNELS).to(DEVICE)
    exact = definition(z.double(), codebook.double())
    yield Case(
        op="nearest_code",
        shape=f"N={len(z)} V={VOCABULARY} Z={CHANNELS}",
        dtype=dtype,
        calls={
            "triton": lambda: nearest_code(z, codebook, backend="triton"),
            "torch": lambda: nearest_code(z, codebook),
            "full matrix": lambda: definition(z, codebook),
            "full matrix, compiled": compiled(lambda: definition(z, codebook)),
        },
        check=lambda ours: ((ours != exact).double().mean().item(), NEAR_TIES),
        flops=2.0 * len(z) * VOCABULARY * CHANNELS,
    )
