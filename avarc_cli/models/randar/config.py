"""The shape of a RandAR: a LlamaGen's, with two positions of the transformer for a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avarc_cli.models.llamagen.config import LlamaGenConfig


@dataclass(frozen=True, kw_only=True)
class RandARConfig(LlamaGenConfig):
    """Shape of a class-conditional RandAR; `ends` are those of runs of positions along the order."""

    title: ClassVar[str] = "RandAR transformer"
    inputs_per_token: ClassVar[int] = 2  # the token before, and the instruction that says which one is next
