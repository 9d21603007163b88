"""What every network does with a state dict: build on no memory, check the keys, take the tensors as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from avarc_cli.errors import CheckpointError, shorten_list
from avarc_cli.words import counted

Module = TypeVar("Module", bound=nn.Module)

# Not an argument of `build`: families call it, those of other packages too, and need not know of it.
_known_finite = ContextVar("known_finite", default=False)


def take(tensors: Mapping[str, Tensor], key: str, *, source: str, expected: str) -> Tensor:
    """One tensor that the configuration is read off. Raises CheckpointError when it is not there."""
    if key not in tensors:
        raise CheckpointError(
            f"{source} is not a {expected} checkpoint",
            f"it has {counted(len(tensors), 'tensor')}, like {shorten_list(sorted(tensors), 4)}, but no '{key}'",
            f"pass the {expected} file here (avarc models lists what each model needs)",
        )
    return tensors[key]


def shape_of(tensors: Mapping[str, Tensor], key: str, dimensions: int, *, source: str, expected: str) -> torch.Size:
    """Shape of a tensor that the configuration is read off. Raises: CheckpointError for other numbers of dimensions."""
    found = take(tensors, key, source=source, expected=expected).shape
    if len(found) != dimensions:
        raise CheckpointError(f"{source} does not fit a {expected}", f"'{key}' has shape {tuple(found)}")
    return found


def count_layers(tensors: Mapping[str, Tensor], key: str) -> int:
    """Number of layers, of which each has the tensor `key`, with {} for the layer's number."""
    return next(layer for layer in range(len(tensors) + 1) if key.format(layer) not in tensors)


def build(make: Callable[[], Module], tensors: Mapping[str, Tensor], *, source: str, expected: str) -> Module:
    """A module made by `make`, holding `tensors` (not copies) as float32, in eval mode.

    Keys that the module does not have are an error, as are missing and mis-shaped ones, and tensors that are not
    floating-point numbers: integers are not weights without their scales. Values that are not finite are an error
    unless `known_finite`.

    Raises: CheckpointError naming the file and the first few offending keys.
    """
    with torch.device("meta"), _Uninitialized():  # a d36 has 2.3 billion parameters: do not fill them for nothing
        module = make()
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in tensors]
    unknown = [k for k in tensors if k not in wanted]
    misshaped = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(w.shape)}"
        for k, w in wanted.items()
        if k in tensors and tensors[k].shape != w.shape
    ]
    problems = [
        f"{len(keys)} {what}: {shorten_list(keys)}"
        for what, keys in (("missing", missing), ("mis-shaped", misshaped), ("unknown", unknown))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit a {expected}",
            "; ".join(problems),
            f"check that the file is a complete {expected} checkpoint; download it again if it is corrupt",
        )
    others = [
        f"{k} ({str(tensors[k].dtype).removeprefix('torch.')})" for k in wanted if not tensors[k].is_floating_point()
    ]
    if others:
        raise CheckpointError(
            f"{source} holds tensors that are not weights",
            f"not floating-point numbers: {shorten_list(others)}",
            "convert the checkpoint to float32, float16 or bfloat16 with the program that wrote it",
        )
    not_finite = [] if _known_finite.get() else [k for k in wanted if not _is_finite(tensors[k])]
    if not_finite:
        raise CheckpointError(
            f"{source} holds values that are not finite",
            f"{counted(len(not_finite), 'tensor')} with NaN or infinity: {shorten_list(not_finite)}",
            "the training run that wrote it diverged, or the file is corrupt: use an earlier checkpoint",
        )
    module.load_state_dict({k: tensors[k].float() for k in wanted}, assign=True)
    return module.eval().requires_grad_(False)


@contextmanager
def known_finite(known: bool) -> Iterator[None]:
    """Inside, `build` trusts that tensors are finite if they are `known` to be, instead of reading a whole file."""
    before = _known_finite.set(known)
    try:
        yield
    finally:
        _known_finite.reset(before)


class _Uninitialized(TorchFunctionMode):
    """Skips what fills new parameters with random numbers, which are never used.

    normal_ on meta tensors even imports torch's compiler, which takes seconds.
    """

    FILLS = frozenset({nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return None if func in self.FILLS else func(*args, **(kwargs or {}))  # their results are not used


def _is_finite(tensor: Tensor) -> bool:
    """One pass over the memory: the smallest and largest value are finite if all are (NaN wins in both)."""
    if tensor.element_size() == 1:
        tensor = tensor.float()  # aminmax has no float8
    return tensor.numel() == 0 or all(bool(end.isfinite()) for end in tensor.aminmax())
