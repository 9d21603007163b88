"""Calibration of the posterior: a temperature, and the gap between confidence and accuracy.

Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599.
Shapes: n images, N candidates, J stages.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from avarc_cli.scoring.scores import FloatN, IntN, posterior

BINS = 15  # as in the source
# Range of temperatures: likelihoods of thousands of tokens are overconfident, so it reaches far up. The digits' is 1.9.
COOLEST, HOTTEST = 0.25, 1024.0
TINY = 1e-300


def fit_temperature(by_stage_JnN: FloatN, label_n: IntN) -> float:
    """The temperature that makes the labels most probable.

    Args:
        by_stage_JnN: scores as scoring.scores.posterior takes them. label_n: positions of the right candidates.
    """
    low, high = np.log(COOLEST), np.log(HOTTEST)
    for _ in range(4):  # each round narrows the range to a tenth
        grid = np.linspace(low, high, 21)
        best = int(np.argmin([negative_log_likelihood(by_stage_JnN, label_n, float(t)) for t in np.exp(grid)]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(np.exp((low + high) / 2))


def negative_log_likelihood(by_stage_JnN: FloatN, label_n: IntN, temperature: float) -> float:
    """Mean of -log p(label), nats; a probability that is 0 in floating point counts as 1e-300."""
    posterior_nN = posterior(by_stage_JnN, temperature)
    return -float(np.log(posterior_nN[np.arange(len(label_n)), label_n].clip(min=TINY)).mean())


class CalibrationError:
    """Expected calibration error of images that are added one after another.

    It is the mean distance of confidence and accuracy over 15 bins of equal width, weighted by their images.
    """

    def __init__(self) -> None:
        self._too_sure = [0.0] * BINS
        self._images = 0

    def add(self, confidence: float, *, right: bool) -> None:
        """Count an image."""
        self._too_sure[min(int(confidence * BINS), BINS - 1)] += confidence - right
        self._images += 1

    def value(self) -> float:
        """The error over the images so far; there is at least one."""
        return sum(abs(each) for each in self._too_sure) / self._images


def expected_calibration_error(confidence_n: FloatN, right_n: npt.NDArray[np.bool_]) -> float:
    """The error over these images (`CalibrationError`)."""
    error = CalibrationError()
    for confidence, right in zip(confidence_n.tolist(), right_n.tolist(), strict=True):
        error.add(confidence, right=right)
    return error.value()
