"""Sizes of a tokenizer and a generator for images of some side, and how they are trained.

Both are LlamaGen's. It classifies the digits as well as a VAR does (docs/digits.md), from 64 tokens in place of 103 and
after half the time of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from avarc_cli.errors import UsageError

TOKENIZER_FAMILY, GENERATOR_FAMILY = "llamagen-vq", "llamagen"
GRID = 8  # tokens a side, or as near to it as halving the side allows
LARGEST_GRID = 16
MULTIPLIERS = (1, 1, 2, 2, 4)  # of the tokenizer's width, level by level; small images need the first only
TOKENIZER_BATCH, GENERATOR_BATCH = 16, 32  # images in a step; many small steps train a tokenizer faster on a CPU


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is trained."""

    image_size: int
    """Side of the images in pixels."""
    tokenizer: Mapping[str, Any]
    """Its shape, in the family's own terms."""
    generator: Mapping[str, Any]
    """The same of the generator."""
    tokenizer_lr: float
    """Peak learning rate of the tokenizer."""
    generator_lr: float
    """The same of the generator."""
    tokenizer_batch: int = TOKENIZER_BATCH
    """Images in a step of the tokenizer."""
    generator_batch: int = GENERATOR_BATCH
    """The same of the generator."""

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.image_size >> (len(self.tokenizer["ch_mult"]) - 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def sizes(image_size: int, *, large: bool) -> Sizes:
    """The sizes for images of this side.

    Args:
        large: for a GPU.
    Raises: UsageError for a side that halving brings to no grid of at most LARGEST_GRID tokens.
    """
    multipliers = list(MULTIPLIERS[: _halvings(image_size) + 1])
    if large:
        tokenizer = {"vocab_size": 1024, "code_channels": 8, "ch": 64, "ch_mult": multipliers, "blocks": 2}
        generator = {"depth": 8, "width": 384, "heads": 6}
        return Sizes(
            image_size=image_size, tokenizer=tokenizer, generator=generator, tokenizer_lr=5e-4, generator_lr=6e-4
        )
    vocabulary = 64 if image_size <= 2 * GRID else 128
    tokenizer = {"vocab_size": vocabulary, "code_channels": 8, "ch": 32, "ch_mult": multipliers, "blocks": 1}
    generator = {"depth": 4, "width": 96, "heads": 3}
    return Sizes(image_size=image_size, tokenizer=tokenizer, generator=generator, tokenizer_lr=1e-3, generator_lr=2e-3)


def _halvings(image_size: int) -> int:
    """How often the side is halved, so that the grid is as near to GRID as it can be. Raises: UsageError."""
    fitting = [n for n in range(len(MULTIPLIERS)) if image_size % (1 << n) == 0 and image_size >> n <= LARGEST_GRID]
    if image_size < 4 or not fitting:
        step = 1 << (len(MULTIPLIERS) - 1)
        near = min(max(step, round(image_size / step) * step), LARGEST_GRID * step)
        raise UsageError(
            f"no model is made for images of {image_size} pixels",
            f"the side, halved a few times, is a grid of at most {LARGEST_GRID} tokens",
            f"--image-size {near}",
        )
    return min(fitting, key=lambda n: abs((image_size >> n) - GRID))
