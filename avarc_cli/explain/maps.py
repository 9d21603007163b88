"""From one number a token to maps: a token of scale k covers 1/p_k^2 of the image.

A token's number is a log-likelihood ratio in nats: log p(x_t | before, y) - log p(x_t | before), the token-wise mutual
information, or the same against another class. Shapes: L tokens, K scales of p_k x p_k tokens, P = p_K the finest side.
Source: A-VARC, arXiv:2510.12060.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avarc_cli.errors import UsageError

Float = npt.NDArray[np.float64]
WEIGHTS = ("paper", "uniform")
UPSAMPLE = ("area", "nearest")


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """How the maps of the scales become one.

    weights: "paper" multiplies the upsampled map of scale k by (p_k / P)^2, so that every token counts once however
        many cells it is painted on; "uniform" multiplies by 1, so that a token counts for every cell it covers.
    scales: the first and the last that take part, counted from 1; None for all.
    upsample: "area" shares a token among the cells it covers by the area, so that sums are exact; "nearest" gives a
        cell to one token, as the paper's own pictures do: where p_k does not divide P some tokens get more cells.

    Raises: UsageError for other values.
    """

    weights: str = "paper"
    scales: tuple[int, int] | None = None
    upsample: str = "area"

    def __post_init__(self) -> None:
        for option, value, known in (("weights", self.weights, WEIGHTS), ("upsample", self.upsample, UPSAMPLE)):
            if value not in known:
                raise UsageError(f"no --{option} '{value}'", f"there are {' and '.join(known)}")

    def of_scales(self, patch_nums: tuple[int, ...]) -> Float:
        """The factor of each scale's upsampled map (K,); 0 for those that take no part.

        Raises: UsageError when there are no such scales.
        """
        first, last = self.scales or (1, len(patch_nums))
        if not 1 <= first <= last <= len(patch_nums):
            raise UsageError(
                f"there are no scales {first}-{last}",
                f"the model has scales 1 to {len(patch_nums)}, of {', '.join(map(str, patch_nums))} tokens a side",
                f"write --scales FIRST-LAST, like {max(1, len(patch_nums) // 2)}-{len(patch_nums)}",
            )
        sides = np.array(patch_nums, dtype=np.float64)
        weights: Float = (sides / sides[-1]) ** 2 if self.weights == "paper" else np.ones(len(sides))
        weights[: first - 1] = weights[last:] = 0
        return weights


def parse_scales(text: str | None) -> tuple[int, int] | None:
    """'4-10' or '4'. Raises UsageError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    if not found:
        raise UsageError(f"cannot read --scales '{text}'", "it is a scale or a range, counted from 1", "write 4-10")
    first, last = int(found[1]), int(found[2] or found[1])
    return first, last


def split_scales(values_L: npt.NDArray[np.floating], patch_nums: tuple[int, ...]) -> list[Float]:
    """One (p_k, p_k) map a scale, coarse to fine."""
    ends = np.cumsum([p * p for p in patch_nums])
    parts = np.split(np.asarray(values_L, dtype=np.float64), ends[:-1])
    return [part.reshape(p, p) for part, p in zip(parts, patch_nums, strict=True)]


def scale_sums(values_L: npt.NDArray[np.floating], patch_nums: tuple[int, ...]) -> Float:
    """The sum over each scale's tokens (K,), in nats."""
    return np.array([grid.sum() for grid in split_scales(values_L, patch_nums)])


def combine(values_L: npt.NDArray[np.floating], patch_nums: tuple[int, ...], weighting: Weighting) -> Float:
    """One map (P, P) of all scales, in nats a cell.

    Its sum, upsampled by area: with the paper's weights the sum of the values of the chosen scales, which for all
    scales is the difference of the two log-likelihoods; with uniform weights, that sum with scale k times (P / p_k)^2.
    """
    weight_K, side = weighting.of_scales(patch_nums), patch_nums[-1]
    combined = np.zeros((side, side))
    for weight, grid in zip(weight_K, split_scales(values_L, patch_nums), strict=True):
        if weight:
            spread = _upsampling(len(grid), side, weighting.upsample)
            combined += weight * (spread @ grid @ spread.T)
    return combined


def _upsampling(tokens: int, cells: int, how: str) -> Float:
    """(cells, tokens): the share of each cell that each token covers, along one axis; rows sum to 1."""
    if how == "nearest":
        return np.eye(tokens)[np.arange(cells) * tokens // cells]
    # In units of 1 / (cells * tokens) of the side, every border is a whole number, and so every overlap is exact.
    cell, token = np.arange(cells)[:, None] * tokens, np.arange(tokens)[None, :] * cells
    overlap = np.minimum(cell + tokens, token + cells) - np.maximum(cell, token)
    shares: Float = np.maximum(overlap, 0) / tokens
    return shares
