"""The shapes of LlamaGens that `avarc bench` times. Without torch, so that a wrong shape is an error at once."""

from __future__ import annotations

from collections.abc import Sequence

from avarc_cli.errors import UsageError
from avarc_cli.settings import parse_dimensions

SHAPES = {  # depth, width and heads of the published sizes
    "b": (12, 768, 12),
    "l": (24, 1024, 16),
    "xl": (36, 1280, 20),
    "xxl": (48, 1536, 24),
    "3b": (24, 3200, 32),
}


def parse(
    text: str, scales: Sequence[int] | None = None, *, family: str = "llamagen", sizes: Sequence[str] = tuple(SHAPES)
) -> tuple[int, int, int]:
    """(depth, width, heads) of a published size, such as "l", or of "DEPTH:WIDTH:HEADS".

    Args:
        scales: the side of the grid alone, or None. family, sizes: of another family with LlamaGen's shapes.
    Raises: UsageError for anything else.
    """
    numbers = SHAPES[text] if text in sizes else parse_dimensions(text)
    if len(numbers) != 3:
        known = ", ".join(f"{family}-{name}" for name in sizes)
        raise UsageError(f"no shape '{family}-{text}'", fix=f"write {known}, or {family}-depth:width:heads")
    depth, width, heads = numbers
    if width % heads or width // heads % 4:
        raise UsageError(f"no shape '{family}-{text}'", f"{width} channels do not divide among {heads} heads")
    if scales is not None and len(scales) != 1:
        raise UsageError(f"a {family} has one grid", f"{len(scales)} scales were named", "write --scales 16")
    return depth, width, heads
