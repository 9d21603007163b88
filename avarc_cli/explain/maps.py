"""From one number per token to maps: a token of a grid of r x c tokens covers 1/(r c) of the image.

A token without a position is spread over the image by its footprint (`TokenizerNetwork.footprints`).

A token's number is a log-likelihood ratio in nats: log p(x_t | before, y) - log p(x_t | before), the token-wise mutual
information, or the same against another class. Shapes: L tokens; K grids of r_k x c_k tokens, coarse to fine; the
finest is R x C = r_K x c_K. Source: A-VARC, arXiv:2510.12060.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avarc_cli.errors import UsageError
from avarc_cli.layout import Grid, TokenLayout

Float = npt.NDArray[np.float64]
WEIGHTS = ("paper", "uniform")
UPSAMPLE = ("area", "nearest")


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """How the maps of the grids become one.

    Raises: UsageError for unknown values.
    """

    weights: str = "paper"
    """"paper" multiplies the upsampled map of grid k by r_k c_k / (R C), so that every token counts once however many
    cells it is painted on; "uniform" multiplies by 1, so that a token counts once for every cell it covers."""

    scales: tuple[int, int] | None = None
    """First and last grid that take part, counted from 1; None for all."""

    upsample: str = "area"
    """"area" divides a token among the cells it covers in proportion to the area, so that sums are exact; "nearest"
    gives each cell to one token, as the paper's figures do: where r_k does not divide R, some tokens get more cells."""

    def __post_init__(self) -> None:
        for option, value, known in (("weights", self.weights, WEIGHTS), ("upsample", self.upsample, UPSAMPLE)):
            if value not in known:
                raise UsageError(f"no --{option} '{value}'", f"there are {' and '.join(known)}")

    def of_grids(self, layout: TokenLayout) -> Float:
        """The factor of each grid's upsampled map, (K,) float64; 0 for grids that take no part.

        Raises: UsageError when the layout has no such scales.
        """
        count = len(layout.grids)
        if not count:
            self._check_without_grids(layout)
            return np.ones(0)
        first, last = self.scales or (1, count)
        if not 1 <= first <= last <= count:
            raise UsageError(
                f"there are no scales {first}-{last}",
                f"the model has scales 1 to {count}, of {', '.join(map(size, layout.grids))} tokens per side",
                f"write --scales FIRST-LAST, like {max(1, count // 2)}-{count}",
            )
        fraction = np.array(layout.grids, dtype=np.float64) / layout.grids[-1]  # (K, 2)
        weights: Float = fraction[:, 0] * fraction[:, 1] if self.weights == "paper" else np.ones(count)
        weights[: first - 1] = weights[last:] = 0
        return weights

    def _check_without_grids(self, layout: TokenLayout) -> None:
        if self.scales is not None or self.weights != "paper":
            option = "--scales" if self.scales is not None else "--weighting"
            raise UsageError(
                f"{option} is about tokens on grids",
                f"the model's {layout.num_tokens} tokens have no position in the image",
                f"leave out {option}",
            )


def require_grids(layout: TokenLayout) -> None:
    """Raises: UsageError when the tokens have no position in the image."""
    if not layout.grids:
        raise UsageError(
            "there are no maps for this model",
            f"its {layout.num_tokens} tokens have no position in the image",
            "avarc export --per-token writes the log-probability of every token",
        )


def size(grid: Grid) -> str:
    """A grid's size for people: "16", or "8x24" where it is not square."""
    rows, columns = grid
    return str(rows) if rows == columns else f"{rows}x{columns}"


def parse_scales(text: str | None) -> tuple[int, int] | None:
    """'4-10' or '4'. Raises UsageError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", text)
    if not found:
        raise UsageError(f"cannot read --scales '{text}'", "it is a scale or a range, counted from 1", "write 4-10")
    first, last = int(found[1]), int(found[2] or found[1])
    return first, last


def split_grids(values_L: npt.NDArray[np.floating], layout: TokenLayout) -> list[Float]:
    """One (r_k, c_k) map per grid, coarse to fine; without grids, one row of all tokens, (1, L)."""
    if not layout.grids:
        return [np.asarray(values_L, dtype=np.float64)[None]]
    parts = np.split(np.asarray(values_L, dtype=np.float64), layout.grid_ends[:-1])
    return [part.reshape(grid) for part, grid in zip(parts, layout.grids, strict=True)]


def combine(
    values_L: npt.NDArray[np.floating],
    layout: TokenLayout,
    weighting: Weighting,
    footprint_LRC: npt.NDArray[np.floating] | None = None,
) -> Float:
    """One map (R, C) of all tokens, in nats per cell.

    With upsampling by area its sum is, for the paper's weights, the sum of the values of the chosen grids, which for
    all grids is the difference of the two log-likelihoods; for uniform weights, that sum with grid k times
    R C / (r_k c_k). Without grids, each token's value is spread by its footprint, and the sum stays.

    Raises: UsageError as `Weighting.of_grids`.
    """
    weight_K = weighting.of_grids(layout)
    if footprint_LRC is not None:
        spread: Float = np.einsum("l,lrc->rc", values_L.astype(np.float64), footprint_LRC.astype(np.float64))
        return spread
    require_grids(layout)
    rows, columns = layout.grids[-1]
    combined = np.zeros((rows, columns))
    for weight, grid in zip(weight_K, split_grids(values_L, layout), strict=True):
        if weight:
            down = _upsampling(grid.shape[0], rows, weighting.upsample)
            across = _upsampling(grid.shape[1], columns, weighting.upsample)
            combined += weight * (down @ grid @ across.T)
    return combined


def _upsampling(tokens: int, cells: int, how: str) -> Float:
    """(cells, tokens): the fraction of each cell that each token covers, along one axis; rows sum to 1."""
    if how == "nearest":
        return np.eye(tokens)[np.arange(cells) * tokens // cells]
    # In units of 1 / (cells * tokens) of the side every border is a whole number, so every overlap is exact.
    cell, token = np.arange(cells)[:, None] * tokens, np.arange(tokens)[None, :] * cells
    overlap = np.minimum(cell + tokens, token + cells) - np.maximum(cell, token)
    fractions: Float = np.maximum(overlap, 0) / tokens
    return fractions


@dataclass(frozen=True)
class Steps:
    """Where a running sum over the tokens is read off: after each grid, or, of a single grid, after each row."""

    labels: tuple[str, ...]
    """One per step, for the axis of a chart."""

    title: str
    """What the labels are."""

    sums: Float
    """Sum over the tokens of each step, in nats."""


def step_sums(values_L: npt.NDArray[np.floating], layout: TokenLayout) -> Steps:
    """The sums over each step's tokens; without grids, each token is a step."""
    if not layout.grids:
        labels = tuple(str(position + 1) for position in range(layout.num_tokens))
        return Steps(labels, "token, without a position in the image", np.asarray(values_L, dtype=np.float64))
    grids = split_grids(values_L, layout)
    if len(grids) > 1:
        sums = np.array([grid.sum() for grid in grids])
        return Steps(tuple(map(size, layout.grids)), "tokens per side, coarse to fine", sums)
    return Steps(tuple(str(row + 1) for row in range(len(grids[0]))), "row, from the top", grids[0].sum(axis=1))
