"""The model of a run in other precisions than the run's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from avarc_cli.likelihood import LikelihoodModel


class LoadLikelihood(Protocol):
    """Loads the model of a run, on a device of this name, in the run's precision or another; picklable."""

    def __call__(self, device: str, precision: str | None = None, /) -> LikelihoodModel: ...


@dataclass
class OtherPrecisions:
    """Loads the model in a precision when it is first needed, and keeps it."""

    load: LoadLikelihood
    device: str
    _loaded: dict[str, LikelihoodModel] = field(default_factory=dict, repr=False)

    def __call__(self, precision: str) -> LikelihoodModel:
        """The model in this precision. Raises: as `load`."""
        if precision not in self._loaded:
            self._loaded[precision] = self.load(self.device, precision)
        return self._loaded[precision]

    def on(self, device: str) -> OtherPrecisions:
        """The same for another device, with nothing loaded."""
        return OtherPrecisions(self.load, device)

    def __getstate__(self) -> dict[str, Any]:
        return {"load": self.load, "device": self.device, "_loaded": {}}
