"""One update of a training: groups of parameters, the rates of the step, clipping, AdamW, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avarc_cli.layers.weight_decay import decays_unless_named
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.sharding import undivided

Decays = Callable[[str, Tensor], bool]  # (name, parameter) -> whether weight decay applies to it
DECAYED = "decayed"  # key of a group of parameters: whether its weight decay is the recipe's, or 0


class Update(NamedTuple):
    """What an update did."""

    norm: float
    """Of the gradients of all parameters together, before clipping."""
    stepped: bool
    """False for an update that was skipped: its gradients are lost, and weights and moments stay."""
    norms: float | None
    """Sum over the tensors of their gradients' norms after clipping; None where the recipe does not ask for it."""


def parameter_groups(network: nn.Module, recipe: Recipe, decays: Decays = decays_unless_named) -> list[dict[str, Any]]:
    """The trained parameters, those with weight decay and those without, for an optimizer.

    Args:
        decays: the rule of the published training, for a recipe that follows it.
    """
    linears = {id(m.weight) for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": recipe.weight_decay, DECAYED: True},
        {"params": [], "weight_decay": 0.0, DECAYED: False},
    ]
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decayed = id(parameter) in linears if recipe.decayed == "linears" else decays(name, parameter)
            groups[not decayed]["params"].append(parameter)
    return groups


def new_optimizer(network: nn.Module, recipe: Recipe, decays: Decays = decays_unless_named) -> torch.optim.AdamW:
    """AdamW of `parameter_groups`. On a CPU all operations on a tensor are one, which is several times faster."""
    groups, on_cpu = parameter_groups(network, recipe, decays), next(network.parameters()).device.type == "cpu"
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True if on_cpu else None)


def update(parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> Update:
    """Clip the gradients that `parameters` have, and make the optimizer's step at the recipe's rates.

    Args:
        optimizer: of `parameter_groups`.
        step: from 0.
    """
    set_rates(optimizer, recipe, step)
    norm = clip(parameters, recipe.clip)
    norms = spread(parameters, recipe)
    stepped = not is_skipped(norms, recipe, step)
    if stepped:
        optimizer.step()
    return Update(norm, stepped, norms)


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """Give the groups of `parameter_groups` the learning rate and weight decay of a step."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
        group["weight_decay"] = recipe.decay(step) if group[DECAYED] else 0.0


def clip(parameters: Iterable[nn.Parameter], limit: float | None) -> float:
    """Clip gradients to this norm over all tensors together. Returns: the norm before."""
    return float(undivided(nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)))


def spread(parameters: Iterable[nn.Parameter], recipe: Recipe) -> float | None:
    """Sum over the tensors of the norms of their clipped gradients; None where the recipe does not ask for it.

    Measured after clipping, as in RandAR's code: it says how gradients are spread over tensors.
    """
    if recipe.skip_norm is None:
        return None
    norms = [p.grad.norm() for p in parameters if p.grad is not None]
    return sum(undivided(torch.stack(norms)).tolist())


def is_skipped(norms: float | None, recipe: Recipe, step: int) -> bool:
    """Whether an update with gradients of this `spread` is left out."""
    return recipe.skip_norm is not None and norms is not None and norms >= recipe.skip_norm and step >= recipe.skip_from


def average(averaged: Mapping[str, Tensor], network: nn.Module, kept: float) -> None:
    """Update the average of the weights in place, of which a fraction `kept` stays."""
    weights = network.state_dict()
    torch._foreach_lerp_([averaged[key] for key in weights], list(weights.values()), 1 - kept)
