"""The shapes of RARs that `avarc bench` times. Without torch, so that a wrong shape is an error at once."""

from __future__ import annotations

from collections.abc import Sequence

from avarc_cli.errors import UsageError
from avarc_cli.settings import parse_dimensions

SHAPES = {  # depth, width, heads and hidden width of the published sizes
    "b": (24, 768, 16, 3072),
    "l": (24, 1024, 16, 4096),
    "xl": (32, 1280, 16, 5120),
    "xxl": (40, 1408, 16, 6144),
}


def parse(text: str, scales: Sequence[int] | None = None) -> tuple[int, int, int, int]:
    """(depth, width, heads, hidden width) of "b", "l", "xl", "xxl" or "DEPTH:WIDTH:HEADS".

    Args:
        scales: the side of the grid alone, or None.
    Raises: UsageError for anything else.
    """
    numbers = SHAPES.get(text) or parse_dimensions(text)
    if len(numbers) == 3:
        numbers = (*numbers, 4 * numbers[1])
    if len(numbers) != 4 or (text not in SHAPES and text.count(":") != 2):
        known = ", ".join(f"rar-{name}" for name in SHAPES)
        raise UsageError(f"no shape 'rar-{text}'", fix=f"write {known}, or rar-depth:width:heads")
    depth, width, heads, hidden = numbers
    if width % heads:
        raise UsageError(f"no shape 'rar-{text}'", f"{width} channels do not divide among {heads} heads")
    if scales is not None and len(scales) != 1:
        raise UsageError("a RAR has one grid", f"{len(scales)} scales were named", "write --scales 16")
    return depth, width, heads, hidden
