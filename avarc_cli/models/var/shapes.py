"""The shapes of VARs that `avarc bench` times. Without torch, so that a wrong shape is an error at once."""

from __future__ import annotations

from collections.abc import Sequence

from avarc_cli.errors import UsageError
from avarc_cli.settings import parse_dimensions


def parse(text: str, scales: Sequence[int] | None = None) -> tuple[int, int, int]:
    """(depth, width, heads) of "d16" or "DEPTH:WIDTH:HEADS". Raises: UsageError for anything else.

    A VAR can have any scales.
    """
    numbers = parse_dimensions(text.removeprefix("d"))
    if len(numbers) != (1 if text.startswith("d") else 3):
        raise UsageError(f"no shape '{text}'", fix="write d16, or depth:width:heads like 4:256:4")
    depth, width, heads = numbers if len(numbers) == 3 else (numbers[0], 64 * numbers[0], numbers[0])
    if width % heads:
        raise UsageError(f"no shape '{text}'", f"{width} channels do not divide among {heads} heads")
    return depth, width, heads
