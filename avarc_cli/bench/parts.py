"""Where the time of scoring goes: seconds, operations and bytes of each part, measured while it runs.

The operations of layers and kernels, and those of torch that networks call themselves, are replaced by timed ones
inside `recorded`. An operation that another one calls belongs to the outer one: the products of the head to the head.
What belongs to no part is host work: embedding, copies of keys and values, and Python.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import avarc_kernels
from avarc_cli.layers import gelu, linears
from avarc_kernels import cpu_attention
from avarc_kernels import linear as product_module

PRODUCTS, ATTENTION, NORMS, ACTIVATION, HEAD = "products", "attention", "norms", "activation", "head"
PARTS = (PRODUCTS, ATTENTION, NORMS, ACTIVATION, HEAD)
Work = Callable[..., tuple[torch.dtype, int]]
"""The dtype that an operation multiplies, and the number of its operations, from its arguments."""


@dataclass
class Spent:
    """What one part took."""

    seconds: float = 0.0
    bytes: int = 0
    """Of the tensors that its operations read and return: the least that must be moved."""
    operations: Counter[torch.dtype] = field(default_factory=Counter)
    """Of matrix products, by the dtype of the numbers that are multiplied; a multiply-add counts as 2."""


class Recorder:
    """Adds up what is spent."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: Mapping[str, Spent] = {part: Spent() for part in PARTS}
        self._outer: str | None = None
        self._counted = False

    def run(
        self, part: str, work: Work | None, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a function that belongs to this part, unless one that belongs to another called it."""
        outer, counted = self._outer, self._counted
        spent = self.spent[outer or part]
        if work is not None and not counted:
            dtype, operations = work(*args, **kwargs)
            spent.operations[dtype] += operations
            self._counted = True
        if outer is not None:
            try:
                return func(*args, **kwargs)
            finally:
                self._counted = counted
        self._outer, started = part, self.now()
        try:
            out = func(*args, **kwargs)
        finally:
            self._outer, self._counted = outer, counted
        spent.seconds += self.now() - started
        spent.bytes += _bytes(args) + _bytes(kwargs.values()) + _bytes([out])
        return out

    def now(self) -> float:
        """Seconds; a GPU has finished what it was given before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@contextmanager
def recorded(recorder: Recorder) -> Iterator[None]:
    """Run a with block with every operation timed; afterwards the modules are as they were before."""
    ours = [m for name, m in sys.modules.items() if name.partition(".")[0] in ("avarc_cli", "avarc_kernels")]
    replaced = []
    try:
        for original, (part, work) in OPERATIONS.items():
            timed = _timed(recorder, part, work, original)
            for module in (*ours, functional, torch.linalg):
                for name in [name for name, value in vars(module).items() if value is original]:
                    setattr(module, name, timed)
                    replaced.append((module, name, original))
        yield
    finally:
        for module, name, original in replaced:
            setattr(module, name, original)


def _timed(recorder: Recorder, part: str, work: Work | None, original: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        return recorder.run(part, work, original, args, kwargs)

    return timed


def _bytes(values: Any) -> int:
    """Of the tensors among these values; those of one stride 0, such as expanded ones, count with what they store."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            stored = value.nbytes if value.is_mkldnn else value.untyped_storage().nbytes()
            total += min(value.nbytes, stored)
        elif isinstance(value, tuple):
            total += _bytes(value)
    return total


def _layer(layer: torch.nn.Module, x: Tensor, *_: Any, **__: Any) -> tuple[torch.dtype, int]:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    dtype = layer.multiplied if isinstance(layer, linears.QuantizedLinear) else weight.dtype
    return dtype, 2 * x.numel() * len(weight)


def _linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> tuple[torch.dtype, int]:
    return weight.dtype, 2 * x.numel() * len(weight)


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, is_causal: bool = False, **__: Any) -> tuple[torch.dtype, int]:
    return q.dtype, 4 * q.numel() * k.shape[-2] // (1 + is_causal)


OPERATIONS: Mapping[Callable[..., Any], tuple[str, Work | None]] = {
    linears.linear: (PRODUCTS, _layer),
    product_module.linear: (PRODUCTS, _linear),
    avarc_kernels.linear_gelu: (PRODUCTS, _linear),
    functional.linear: (PRODUCTS, _linear),
    avarc_kernels.block_causal_attention: (ATTENTION, None),
    avarc_kernels.causal_attention: (ATTENTION, None),
    functional.scaled_dot_product_attention: (ATTENTION, _attention),
    cpu_attention.attention_by_products: (ATTENTION, _attention),
    avarc_kernels.adaln: (NORMS, None),
    avarc_kernels.gated_residual_adaln: (NORMS, None),
    avarc_kernels.residual_rms_norm: (NORMS, None),
    avarc_kernels.head_layer_norm: (NORMS, None),
    functional.layer_norm: (NORMS, None),
    torch.linalg.vector_norm: (NORMS, None),
    gelu.gelu: (ACTIVATION, None),
    avarc_kernels.swiglu: (ACTIVATION, None),
    avarc_kernels.rotary: (ACTIVATION, None),
    functional.gelu: (ACTIVATION, None),
    functional.silu: (ACTIVATION, None),
    avarc_kernels.linear_log_prob: (HEAD, None),
}
"""What is timed, and what its work is where it multiplies matrices."""
