"""Settings that published models were drawn with, for FIDs or demos (assets/sampling/paper.toml). No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from avarc_cli import toml_file
from avarc_cli.errors import UsageError, shorten_list
from avarc_cli.zoo.cards import model_card
from avarc_cli.zoo.local_files import ASSETS

PAPER = "paper"
_FILE = ASSETS / "sampling" / "paper.toml"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings for a published model."""

    model: str
    source: str
    """The publication, or its code."""
    stated: str
    """The guidance, in the words of the source."""
    guidance: float
    """As `Sampling.guidance`; 0 is none."""
    top_k: int
    """0 for all codes."""
    top_p: float
    """0 for all codes."""
    temperature: float
    """Of logits, or of the noise in a masked model's choices at its first step. avarc's samplers have it built in."""
    schedule: str
    """How guidance changes from the first tokens to the last, in words."""
    rounding: str
    """As in `to_pixels`."""
    steps: int | None = None
    """Passes of a sampler that draws several tokens at a time."""
    side: int | None = None
    """Pixels a side that pictures are reduced to; None for their own."""

    @property
    def family(self) -> str:
        """Of the model."""
        return model_card(self.model).family

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for what records how pictures were drawn."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@cache
def published() -> dict[str, Preset]:
    """All presets, by the name of a model. Raises: as `toml_file.read`."""
    groups = toml_file.read(_FILE)["settings"]
    return {name: Preset(model=name, **_without_models(group)) for group in groups for name in group["models"]}


def _without_models(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "models"}


def find(asked: str, model: str) -> Preset:
    """The preset that --preset names.

    Args:
        asked: "paper" for that of the model, or the name of the published model that it is.
        model: what --model names.
    Raises: UsageError where none is published.
    """
    name = model if asked == PAPER else asked
    if (found := published().get(name)) is not None:
        return found
    why = f"there are settings of {shorten_list(list(published()))}"
    if asked != PAPER:
        raise UsageError(f"no preset '{asked}'", why, "write --preset paper, or one of these names")
    raise UsageError(
        f"no settings are published for '{model}'",
        why,
        "give --guidance, --top-k and --top-p, or, if it is a file of one of these models, --preset with its name",
    )
