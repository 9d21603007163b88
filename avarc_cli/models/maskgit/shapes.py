"""The shapes of MaskGITs that `avarc bench` times. Without torch, so that a wrong shape is an error at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from avarc_cli.errors import UsageError
from avarc_cli.settings import parse_dimensions


class Shape(NamedTuple):
    """Of a MaskGIT."""

    depth: int
    width: int
    heads: int
    num_tokens: int
    bert: bool
    """Whether the transformer is a BERT, else a UViT."""


SHAPES = {  # the published ones
    "l32": Shape(24, 768, 16, 32, True),
    "b64": Shape(24, 768, 16, 64, True),
    "s128": Shape(20, 1024, 16, 128, False),
}


def parse(text: str, scales: Sequence[int] | None = None) -> Shape:
    """The shape of "l32", "b64", "s128", or of a UViT "DEPTH:WIDTH:HEADS:TOKENS". Raises: UsageError."""
    if scales is not None:
        raise UsageError("a MaskGIT's tokens have no grid", f"--scales {','.join(map(str, scales))} names some")
    if text in SHAPES:
        return SHAPES[text]
    numbers = parse_dimensions(text)
    if len(numbers) != 4 or text.count(":") != 3:
        known = ", ".join(f"maskgit-{name}" for name in SHAPES)
        raise UsageError(f"no shape 'maskgit-{text}'", fix=f"write {known}, or maskgit-depth:width:heads:tokens")
    depth, width, heads, num_tokens = numbers
    if width % heads or depth % 2:
        why = f"{width} channels do not divide among {heads} heads" if width % heads else "a UViT's depth is even"
        raise UsageError(f"no shape 'maskgit-{text}'", why)
    return Shape(depth, width, heads, num_tokens, bert=False)
