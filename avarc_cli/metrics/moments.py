"""Mean and covariance of features, block by block, and the Fréchet distance of two such pairs.

Shapes: N images, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The normal distribution that features are taken to have."""

    mean: Floats
    """(D,)."""
    covariance: Floats
    """(D, D)."""


class Moments:
    """Mean and covariance of features that arrive in blocks, in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self, width: int) -> None:
        """Args: width: D."""
        self.count = 0
        self._mean_D: Floats = np.zeros(width)
        self._scatter_DD: Floats = np.zeros((width, width))  # sum of products of deviations from the mean

    def add(self, features_ND: np.ndarray) -> None:
        """Count these features too."""
        number = len(features_ND)
        if not number:
            return
        block_ND = features_ND.astype(np.float64)
        mean_D = block_ND.mean(axis=0)
        block_ND -= mean_D
        step_D, total = mean_D - self._mean_D, self.count + number
        self._scatter_DD += block_ND.T @ block_ND
        self._scatter_DD += np.outer(step_D, step_D) * (self.count * number / total)
        self._mean_D += step_D * (number / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Mean, and covariance with N - 1 as np.cov has it. Raises: ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two images, there are {self.count}")
        return Gaussian(self._mean_D, self._scatter_DD / (self.count - 1))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Squared Fréchet distance: |m1 - m2|² + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2).

    With factors C = F Fᵀ, the last trace is the sum of the singular values of F1ᵀ F2. This is the published
    evaluator's scipy.linalg.sqrtm(C1 C2), without its complex numbers, and without its failure where the covariances
    are singular, as those of fewer images than features are.
    """
    gap_D = one.mean - other.mean
    cross = np.linalg.svd(_factor(one.covariance).T @ _factor(other.covariance), compute_uv=False).sum()
    distance = gap_D @ gap_D + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross
    return max(0.0, float(distance))  # of equal distributions rounding may leave -1e-13


def _factor(covariance_DD: Floats) -> Floats:
    """F (D, R) with F Fᵀ = C, of as many columns as C has eigenvalues beyond rounding."""
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    is_noise_D = values_D <= 32 * np.finfo(np.float64).eps * values_D.max(initial=0)
    factor_DR: Floats = vectors_DD[:, ~is_noise_D] * np.sqrt(values_D[~is_noise_D])
    return factor_DR
