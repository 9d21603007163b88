"""What a bench scores, as a family of models provides it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from avarc_cli import families
from avarc_cli.added_classes import AddedClassesModel
from avarc_cli.likelihood import BenchWorkload
from avarc_cli.loaded import LoadedModel

DEFAULT_FAMILY = "var"


def random_workload(shape: str, scales: Sequence[int] | None, device: torch.device) -> BenchWorkload:
    """A model with random weights.

    Args:
        shape: in a family's own words after its name and a dash ("llamagen-l"); without a name, of a VAR ("d16").
        scales: sides of the scales, None for the family's default.
    Raises: UsageError for anything else, and when the family has no reference implementation.
    """
    name, dash, own = shape.partition("-")
    family, words = (name, own) if dash and name in families.GENERATORS.names() else (DEFAULT_FAMILY, shape)
    return families.GENERATORS.get(family).random_workload(words, scales, device)


def model_workload(model: LoadedModel, device: torch.device) -> BenchWorkload:
    """The weights of a loaded model. Raises: UsageError when its family has no reference implementation."""
    likelihood = model.likelihood
    base = likelihood.base if isinstance(likelihood, AddedClassesModel) else likelihood
    return families.GENERATORS.get(model.family).model_workload(base, device)
