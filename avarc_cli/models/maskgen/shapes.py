"""The shapes of MaskGen VQs that `avarc bench` times. Without torch, so that a wrong shape is an error at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from avarc_cli.errors import UsageError
from avarc_cli.settings import parse_dimensions


class Shape(NamedTuple):
    """Of a MaskGen VQ."""

    depth: int
    width: int
    heads: int
    num_tokens: int


SHAPES = {"l": Shape(16, 1024, 16, 128), "xl": Shape(20, 1280, 16, 128)}  # the published ones


def parse(text: str, scales: Sequence[int] | None = None) -> Shape:
    """The shape of "l", "xl" or "DEPTH:WIDTH:HEADS:TOKENS". Raises: UsageError."""
    if scales is not None:
        raise UsageError("a MaskGen's tokens have no grid", f"--scales {','.join(map(str, scales))} names some")
    if text in SHAPES:
        return SHAPES[text]
    numbers = parse_dimensions(text)
    if len(numbers) != 4 or text.count(":") != 3:
        known = ", ".join(f"maskgen-{name}" for name in SHAPES)
        raise UsageError(f"no shape 'maskgen-{text}'", fix=f"write {known}, or maskgen-depth:width:heads:tokens")
    shape = Shape(*numbers)
    if shape.width % shape.heads:
        raise UsageError(
            f"no shape 'maskgen-{text}'", f"{shape.width} channels do not divide among {shape.heads} heads"
        )
    return shape
