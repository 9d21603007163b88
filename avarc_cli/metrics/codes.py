"""How the tokens of images use a tokenizer's codes.

Shapes: B images, K grids, L tokens, V codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avarc_cli.layout import TokenLayout


@dataclass(frozen=True)
class Usage:
    """How the tokens of a grid, or of all, use the codes."""

    where: str
    """The grid, "4 x 4", or "all tokens"."""
    tokens: int
    """That were counted."""
    used: int
    """Different codes among them."""
    entropy: float
    """Of their distribution, in bits."""

    @property
    def perplexity(self) -> float:
        """Codes that would have this entropy if all were as frequent."""
        return float(2**self.entropy)

    @classmethod
    def of(cls, where: str, counts_V: np.ndarray) -> Usage:
        """That of codes with these frequencies."""
        share = counts_V[counts_V > 0] / counts_V.sum()
        entropy = float(-(share * np.log2(share)).sum())
        return cls(where, int(counts_V.sum()), len(share), max(0.0, entropy))


class Codes:
    """Counts codes, grid by grid."""

    def __init__(self, layout: TokenLayout, vocab_size: int, counts_KV: np.ndarray | None = None) -> None:
        """Args: counts_KV: what was counted before; None for nothing."""
        self._ends = layout.grid_ends or (layout.num_tokens,)
        self._names = [f"{rows} x {columns}" for rows, columns in layout.grids] or ["all tokens"]
        nothing = np.zeros((len(self._ends), vocab_size), dtype=np.int64)
        self.counts_KV = nothing if counts_KV is None else counts_KV
        """How often each code occurred in each grid."""

    def add(self, tokens_BL: np.ndarray) -> None:
        """Count these tokens too."""
        for counts_V, tokens in zip(self.counts_KV, np.split(tokens_BL, self._ends[:-1], axis=1), strict=True):
            counts_V += np.bincount(tokens.reshape(-1), minlength=len(counts_V))

    def usage(self) -> tuple[Usage, ...]:
        """Of each grid, and, where there are several, of all."""
        each = [Usage.of(name, counts_V) for name, counts_V in zip(self._names, self.counts_KV, strict=True)]
        return (*each, Usage.of("all tokens", self.counts_KV.sum(axis=0))) if len(each) > 1 else tuple(each)
