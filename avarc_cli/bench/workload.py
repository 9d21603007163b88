"""What a bench scores, as a family of models provides it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from avarc_cli import families
from avarc_cli.added_classes import AddedClassesModel
from avarc_cli.family import BenchWorkload
from avarc_cli.loaded import LoadedModel


def random_workload(shape: str, scales: Sequence[int] | None, device: torch.device) -> BenchWorkload:
    """A model with random weights.

    Args:
        shape: as in `families.family_of_shape`.
        scales: sides of the scales, None for the family's default.
    Raises: UsageError for anything else, and when the family has no reference implementation.
    """
    family, words = families.family_of_shape(shape)
    return families.GENERATORS.get(family).random_workload(words, scales, device)


def model_workload(model: LoadedModel, device: torch.device) -> BenchWorkload:
    """The weights of a loaded model. Raises: UsageError when its family has no reference implementation."""
    likelihood = model.likelihood
    base = likelihood.base if isinstance(likelihood, AddedClassesModel) else likelihood
    return families.GENERATORS.get(model.family).model_workload(base, device)
