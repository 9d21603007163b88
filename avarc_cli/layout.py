"""Where the tokens of an image lie: on grids from coarse to fine, on one raster grid, or nowhere in particular.

Code above the models asks the layout, never a model family, where a token is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

Grid: TypeAlias = tuple[int, int]  # rows and columns


@dataclass(frozen=True)
class TokenLayout:
    """The positions of an image's L tokens. Tokens come grid after grid, each grid row by row.

    Make one with `multi_scale`, `raster` or `sequence`.

    Raises: ValueError for sizes that are not positive whole numbers, and for grids that do not hold L tokens.
    """

    grids: tuple[Grid, ...]
    """Coarse to fine; every grid covers the whole image. Empty when tokens have no position in the image."""

    num_tokens: int
    """L."""

    def __post_init__(self) -> None:
        sizes = [self.num_tokens, *(size for grid in self.grids for size in grid)]
        if not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"a token layout of sizes {sizes}; all must be positive whole numbers")
        if self.grids and sum(rows * columns for rows, columns in self.grids) != self.num_tokens:
            raise ValueError(f"grids {self.grids} do not hold {self.num_tokens} tokens")

    @classmethod
    def multi_scale(cls, sides: Sequence[int]) -> TokenLayout:
        """Square grids of these sides, coarse to fine."""
        return cls(tuple((side, side) for side in sides), sum(side * side for side in sides))

    @classmethod
    def raster(cls, rows: int, columns: int) -> TokenLayout:
        """One grid."""
        return cls(((rows, columns),), rows * columns)

    @classmethod
    def sequence(cls, num_tokens: int) -> TokenLayout:
        """Tokens that describe the image as a whole."""
        return cls((), num_tokens)

    @property
    def grid_ends(self) -> tuple[int, ...]:
        """End position of each grid in the sequence; the last is L."""
        return tuple(accumulate(rows * columns for rows, columns in self.grids))

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of square grids. Raises: ValueError when one is not square."""
        if any(rows != columns for rows, columns in self.grids):
            raise ValueError(f"the grids of '{self}' are not square")
        return tuple(rows for rows, _ in self.grids)

    def __str__(self) -> str:
        if not self.grids:
            return f"{self.num_tokens} tokens without a grid"
        sizes = [str(rows) if rows == columns else f"{rows}x{columns}" for rows, columns in self.grids]
        return f"scales {','.join(sizes)}" if len(sizes) > 1 else "{}x{} grid".format(*self.grids[0])

    def to_dict(self) -> dict[str, Any]:
        """As JSON: {"grids": [[rows, columns], ...]}, or {"tokens": L} without grids."""
        return {"grids": [list(grid) for grid in self.grids]} if self.grids else {"tokens": self.num_tokens}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenLayout:
        """What `to_dict` gave. Raises: KeyError, TypeError, ValueError for anything else."""
        if "grids" not in values:
            return cls.sequence(values["tokens"])
        grids = tuple((rows, columns) for rows, columns in values["grids"])
        if not grids:
            raise ValueError("a token layout without a grid")
        return cls(grids, sum(rows * columns for rows, columns in grids))
