"""Switches that torch keeps per process, set for the length of a with block and restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Run a with block with `torch.use_deterministic_algorithms(enabled)`; the earlier setting returns afterwards.

    On CUDA torch also wants CUBLAS_WORKSPACE_CONFIG to be set before the first matrix product; `load_classifier` does.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if enabled == before and not (enabled and warn_only):
        yield  # the setter imports torch's compiler, 1.7 s and 150 MB: do not call it without need
        return
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
