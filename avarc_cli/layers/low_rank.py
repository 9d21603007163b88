"""Low-rank changes of a linear's weight: W + scale B A (LoRA, arXiv:2106.09685).

The changed weight is computed whenever it is read: the linear's own is neither copied nor written.
Shapes: r rank; W is (out, in), A (r, in), B (out, r).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from avarc_cli.layers.linears import QuantizedLinear
from avarc_cli.layers.stored import plain

# Keys of PEFT's files: PREFIX, the linear's name, then one of these.
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

Network = TypeVar("Network", bound=nn.Module)


class LowRank(nn.Module):
    """W -> W + scale B A, computed in float32 and returned in the dtype of W."""

    def __init__(self, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    @classmethod
    def new(cls, shape: tuple[int, int], rank: int, generator: torch.Generator) -> LowRank:
        """A change of a weight of this shape that begins as none: B is zero."""
        rows, columns = shape
        return cls(torch.randn(rank, columns, generator=generator) / columns**0.5, torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return (plain(weight).float() + self.scale * (self.b @ self.a)).to(weight.dtype)


class ChangedLinear(nn.Linear):
    """A linear that multiplies by its own weight with a change. `torch.nn.utils.parametrize` rejects packed weights."""

    own: nn.Parameter
    change: LowRank

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        changed: Tensor = self.change(self.own)
        return changed


def attach(network: nn.Module, changes: Mapping[str, LowRank]) -> None:
    """Change the weights of these linears (by name) of the network."""
    for name, change in changes.items():
        linear = network.get_submodule(name)
        own = linear._parameters.pop("weight")
        linear.__class__ = ChangedLinear
        linear.own, linear.change = cast("nn.Parameter", own), change


def finished(network: Network, base: Network) -> Network:
    """The network, whose weights are the base's but for what was attached, in the base's precision and kernels.

    What is quantized is the base's own where the weight has no change.
    """
    changed, own = cast("Any", network), cast("Any", base)
    changed.precision = own.precision
    if own.precision.quantized:
        for name, layer in base.named_modules():
            if isinstance(layer, QuantizedLinear) and type(network.get_submodule(name)) is nn.Linear:
                network.set_submodule(name, layer)
        changed.set_precision(own.precision)
    changed.set_kernels(own.kernels)
    return network


def attached(network: nn.Module) -> dict[str, LowRank]:
    """The changes that were attached to a network, by the name of the linear."""
    end = ".change"
    return {name.removesuffix(end): m for name, m in network.named_modules() if isinstance(m, LowRank)}


def peft_tensors(changes: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The factors, by linear's name, under PEFT's keys."""
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        tensors |= {f"{PREFIX}{name}{A}": change.a.detach(), f"{PREFIX}{name}{B}": change.b.detach()}
    return tensors
