"""How the tokens of an image are stored: codes of a codebook, or the continuous tokens of a VAE.

Shapes: n images, S samples, L tokens, Z channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenForm:
    """The array that holds the tokens of images."""

    samples: int
    """S."""
    num_tokens: int
    """L."""
    channels: int = 0
    """Z of continuous tokens; 0 for codes."""

    @property
    def dataset(self) -> str:
        """What the array is called in caches and chunk files."""
        return "latents" if self.channels else "tokens"

    @property
    def dtype(self) -> np.dtype[np.uint16] | np.dtype[np.float32]:
        """uint16, or float32 of continuous tokens."""
        return np.dtype(np.float32) if self.channels else np.dtype(np.uint16)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: (S, L), or (S, L, Z)."""
        return (self.samples, self.num_tokens, self.channels) if self.channels else (self.samples, self.num_tokens)

    @property
    def nbytes(self) -> int:
        """Of one image."""
        return math.prod(self.shape) * self.dtype.itemsize

    def none(self) -> np.ndarray:
        """The tokens of no image."""
        return np.empty((0, *self.shape), dtype=self.dtype)
