"""A network whose weights are divided among the processes of a training, each of which keeps a part of every tensor.

It is torch's FSDP2. A unit's weights are whole only while the unit is called and while its gradients are computed; the
parts of gradients, of the optimizer's state and of the averaged weights never leave their process. Units are the blocks
that a network calls, and its other linears. What is left (embeddings, norms) is whole during a step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from avarc_cli.layers import collectives
from avarc_cli.layers.linears import CalledLinear
from avarc_cli.train.blocks import repeated_blocks

_Result = TypeVar("_Result")
_Key = TypeVar("_Key")


def shard(network: nn.Module) -> None:
    """Divide a network, in place, before anything refers to its parameters. From then on use it inside `call`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # takes seconds to import

    # It warns of changes in place to what a compiled linear returns; there are none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(next(network.parameters()).device.type, (collectives.count(),))
    # A Sequential only groups its layers: some networks call these one by one.
    blocks = [block for block in repeated_blocks(network) if not isinstance(block, nn.Sequential)]
    inside = {module for block in blocks for module in block.modules()}
    linears = [module for module in network.modules() if type(module) is nn.Linear and module not in inside]
    for linear in linears:
        linear.__class__ = CalledLinear
    for unit in (*blocks, *linears):
        fully_shard(unit, mesh=mesh)
    network.forward = _call
    fully_shard(network, mesh=mesh)


def is_sharded(network: nn.Module) -> bool:
    """Whether the network is divided."""
    return network.forward is _call


def call(network: nn.Module, function: Callable[..., _Result], *args: Any) -> _Result:
    """Call a function that computes with the network's weights, and whose gradients are computed later."""
    return network(function, *args) if is_sharded(network) else function(*args)


def _call(function: Callable[..., _Result], *args: Any) -> _Result:
    """The forward method of a divided network: torch makes weights whole around it."""
    return function(*args)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """All weights are whole in every process, to be read. All processes come here together."""
    units: list[Any] = [module for module in network.modules() if hasattr(module, "unshard")]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not network, recurse=False)


def whole(tensors: Any) -> Any:
    """A tree of dicts and tensors with the divided ones whole, on the CPU: in the first process, elsewhere None.

    All processes come here together.
    """
    if isinstance(tensors, Mapping):
        return {key: whole(value) for key, value in tensors.items()}
    if not _is_divided(tensors):
        return tensors
    full = undivided(tensors)
    return full.cpu() if collectives.rank() == 0 else None


def undivided(tensor: Tensor) -> Tensor:
    """The whole tensor, where it is, in every process. All processes come here together."""
    return cast("Tensor", cast("Any", tensor).full_tensor()) if _is_divided(tensor) else tensor


def _is_divided(thing: Any) -> bool:
    return hasattr(thing, "full_tensor")  # it is a DTensor, whose class takes seconds to import


def make_whole(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """End the division of a network: in the first process it has these weights, on the CPU, elsewhere none.

    All processes come here together.
    """
    full = whole(weights)
    for name, _ in list(network.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        value = full[name] if collectives.rank() == 0 else torch.empty(0)
        network.get_submodule(owner)._parameters[leaf] = nn.Parameter(value)


def received(here: Mapping[_Key, Tensor], there: Mapping[_Key, Tensor] | None) -> dict[_Key, Tensor]:
    """The tensors that the first process has as `there`, for every process on the devices of `here` and divided so.

    One by one: no process but the first ever has all of them.
    """
    return {key: _received(tensor, None if there is None else there[key]) for key, tensor in here.items()}


def _received(here: Tensor, there: Tensor | None) -> Tensor:
    full = torch.empty(here.shape, dtype=here.dtype, device=here.device) if there is None else there.to(here.device)
    if collectives.count() > 1:
        distributed.broadcast(full, 0)
    if not _is_divided(here):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(here, DTensor)
    return distribute_tensor(full, here.device_mesh, here.placements, src_data_rank=None)
