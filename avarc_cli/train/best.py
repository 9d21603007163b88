"""The best weights of a training so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Best:
    """The averaged weights with the smallest loss on validation data so far."""

    step: int = 0
    loss: float = math.inf
    weights: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any] | None:
        """For a checkpoint; None before the first validation."""
        return None if self.weights is None else dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: KeyError, TypeError."""
        self.step, self.loss, self.weights = int(state["step"]), float(state["loss"]), dict(state["weights"])
