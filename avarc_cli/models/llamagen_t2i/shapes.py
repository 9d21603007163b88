"""The shapes of text-conditional LlamaGens that `avarc bench` times: LlamaGen's. There is no torch here."""

from __future__ import annotations

from collections.abc import Sequence

from avarc_cli.models.llamagen import shapes

SIZES = ("xl",)


def parse(text: str, scales: Sequence[int] | None = None) -> tuple[int, int, int]:
    """As `llamagen.shapes.parse`. Raises: UsageError."""
    return shapes.parse(text, scales, family="llamagen-t2i", sizes=SIZES)
