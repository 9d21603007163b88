"""The shapes of published models, and of small ones for Triton's interpreter, which is slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the operations of a model need to know."""

    name: str
    width: int
    heads: int
    positions: int  # that score an image
    operations: tuple[str, ...]  # files of this folder
    vocabulary: int = 4096
    hidden: int = 0  # width of a SwiGLU
    new: int = 0  # positions of the last of an image's segments, in causal attention
    grouped: bool = False  # causal attention also with fewer heads of keys
    ends: tuple[int, ...] = ()  # of a VAR's scales

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def var(name: str, width: int, heads: int, sides: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)) -> Model:
    """A VAR, whose block-causal attention sees whole scales."""
    ends = tuple(accumulate(side * side for side in sides))
    operations = ("linear_log_prob", "block_causal_attention", "adaln", "linear_gelu", "nearest_code", "quantize_rows")
    return Model(name=name, width=width, heads=heads, positions=ends[-1], ends=ends, operations=operations)


def llamagen(name: str, width: int, heads: int, hidden: int, side: int) -> Model:
    """A LlamaGen: position 0 is the class, and the last token is only predicted."""
    return Model(
        name=name,
        width=width,
        heads=heads,
        positions=side * side,
        new=side,
        hidden=hidden,
        vocabulary=16384,
        operations=("linear_log_prob", "causal_attention", "rms_norm", "rotary", "swiglu"),
    )


def rar(name: str, width: int, heads: int, side: int = 16) -> Model:
    """A RAR: two positions come before the first token; each has a modulation of its own."""
    return Model(
        name=name,
        width=width,
        heads=heads,
        positions=side * side + 1,
        new=side,
        vocabulary=1024,
        operations=("linear_log_prob", "causal_attention", "adaln", "head_layer_norm"),
    )


def randar(name: str, width: int, heads: int, hidden: int, side: int = 16) -> Model:
    """A RandAR: the class, and an instruction before each token."""
    alike = llamagen(name, width, heads, hidden, side)
    return replace(alike, positions=2 * side * side, new=2 * side)


ON_A_GPU = (
    var("d16", 1024, 16),
    var("d30", 1920, 30),
    llamagen("llamagen-b", 768, 12, 2048, 16),
    replace(llamagen("llamagen-l", 1024, 16, 2816, 24), grouped=True),
    llamagen("llamagen-xl", 1280, 20, 3584, 24),
    llamagen("llamagen-3b", 3200, 32, 8704, 24),
    rar("rar-b", 768, 16),
    rar("rar-l", 1024, 16),
    randar("randar-l", 1024, 16, 2816),
)
QUICK = ("d16", "llamagen-l", "rar-b", "randar-l")
SMALL = (
    replace(var("var", 128, 2, (1, 2, 3, 4, 5, 6)), vocabulary=600),
    replace(llamagen("llamagen", 128, 2, 344, 8), vocabulary=600, grouped=True),
    replace(rar("rar", 96, 2, 8), vocabulary=600),
    replace(randar("randar", 128, 2, 344, 8), vocabulary=600),
)
