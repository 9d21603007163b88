"""Several states of a model as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from avarc_cli.layers.kv_cache import KVCache


class SequenceState(Protocol):
    """A dataclass: tensors with a row for each sequence or each pair, KV caches, and values that all states share."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    tokens_BL: Tensor
    sequence_P: Tensor
    """Row of each pair in the tensors of the sequences."""


S = TypeVar("S", bound=SequenceState)


def join_states(states: Sequence[S]) -> S:
    """A state of the pairs of all these, one after the other. They have been scored equally far."""
    joined: dict[str, Any] = {}
    for field in fields(states[0]):
        values = [getattr(state, field.name) for state in states]
        if isinstance(values[0], KVCache):
            joined[field.name] = KVCache.joined(values)
        elif isinstance(values[0], Tensor):
            joined[field.name] = torch.cat(values)
    first_row = accumulate((len(state.tokens_BL) for state in states), initial=0)
    joined["sequence_P"] = torch.cat([state.sequence_P + row for state, row in zip(states, first_row, strict=False)])
    return replace(states[0], **joined)
