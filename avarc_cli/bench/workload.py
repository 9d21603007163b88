"""What a bench scores, as a family of models provides it.

Shapes: P pairs of the image and a class, L tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from avarc_cli.likelihood import LikelihoodModel

FAMILY = "avarc_cli.models.var.benchmark"  # the only family that has a reference implementation


class Workload(Protocol):
    """One image's tokens, and models with the same weights to score them with."""

    segment_ends: tuple[int, ...]
    """End position of each segment; the last is L."""

    num_classes: int
    """Of the models."""

    flops: int
    """Floating-point operations to score one pair, only the necessary ones."""

    tokens_L: Tensor
    """int64."""

    def reference(self, class_id_P: Tensor) -> Tensor:
        """Token log-probabilities by a straightforward float32 implementation in plain PyTorch, (P, L)."""
        ...

    def model(self, precision: str, kernels: str) -> LikelihoodModel:
        """The family's model. Raises: UsageError for a precision that is not available."""
        ...


def random_workload(shape: str, scales: Sequence[int] | None, device: torch.device) -> Workload:
    """A model of this shape with random weights.

    Args:
        shape: "d16", or "depth:width:heads". scales: sides of the scales, None for those at 256 px.
    Raises: UsageError for anything else.
    """
    return cast("Workload", _family().random_workload(shape, scales, device))


def model_workload(model: LikelihoodModel, device: torch.device) -> Workload:
    """The weights of a loaded model. Raises: UsageError when its family has no reference implementation."""
    return cast("Workload", _family().model_workload(model, device))


def _family() -> Any:
    return importlib.import_module(FAMILY)
