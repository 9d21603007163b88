"""A first cut over all classes that takes no pass of the model: how close an image is to the mean of each class.

The means are those of images that the model itself draws from its classes, so no image but these is needed. What is
compared is a linear summary of an image's tokens (`LikelihoodModel.summary`), in the few directions in which the means
differ most compared with the images of one class (Fisher's linear discriminants; Hastie, Tibshirani, Friedman, The
Elements of Statistical Learning, 4.3). An image's score for a class is then -|x - mean|^2 / 2, the log-density of a
Gaussian up to a constant of the image. It only drops classes; those that are left are scored by the model.

Shapes: M drawn images of a class, G images, N candidates, D numbers of a summary, R directions.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from avarc_cli.scoring.scores import FloatN

DIRECTIONS = 64
SHRINKAGE = 0.2  # of the correlations within a class: there may be fewer images than numbers in a summary
TINY = 1e-6  # variance that is added, because a number may be the same for all images
STORED = np.dtype("<f2")  # half precision: a plan for 1,000 classes has 200 KiB


@dataclass(frozen=True, eq=False)
class FirstCut:
    """Directions, and the mean of each candidate in them."""

    direction_DR: npt.NDArray[np.float16]
    """Scaled so that images of one class have variance 1 in each."""
    mean_NR: npt.NDArray[np.float16]
    """In the order of the candidates."""

    def scores(self, x_GD: FloatN) -> FloatN:
        """-|x - mean|^2 / 2 of these summaries and each candidate, (G, N)."""
        direction_DR, mean_NR = self.direction_DR.astype(np.float64), self.mean_NR.astype(np.float64)
        # Image by image: a product of several would round differently, so that scores would depend on the batch.
        scores_GN: FloatN = -np.stack([((x_D @ direction_DR - mean_NR) ** 2).sum(1) for x_D in x_GD]) / 2
        return scores_GN

    def to_dict(self) -> dict[str, Any]:
        """The two arrays as JSON can hold them."""
        return {name: _encode(getattr(self, name)) for name in ("direction_DR", "mean_NR")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FirstCut:
        """What `to_dict` made. Raises: ValueError, KeyError, TypeError for anything else."""
        return cls(_decode(values["direction_DR"]), _decode(values["mean_NR"]))


def discriminants(x_NMD: FloatN) -> FirstCut:
    """The directions and means of these images, as many of each class."""
    mean_ND = x_NMD.mean(1)
    within_MD = (x_NMD - mean_ND[:, None]).reshape(-1, x_NMD.shape[-1])
    covariance_DD = within_MD.T @ within_MD / max(1, len(within_MD) - len(mean_ND))
    shrunk_DD = (1 - SHRINKAGE) * covariance_DD + SHRINKAGE * np.diag(np.diag(covariance_DD))
    variance_D, vector_DD = np.linalg.eigh(shrunk_DD + TINY * np.eye(len(shrunk_DD)))
    whiten_DD = vector_DD / np.sqrt(variance_D)
    between_ND = (mean_ND - mean_ND.mean(0)) @ whiten_DD
    direction_RD = np.linalg.svd(between_ND, full_matrices=False)[2][:DIRECTIONS]
    direction_DR = (whiten_DD @ direction_RD.T).astype(STORED)
    return FirstCut(direction_DR, (mean_ND @ direction_DR.astype(np.float64)).astype(STORED))


def _encode(array: npt.NDArray[np.float16]) -> dict[str, Any]:
    return {"shape": list(array.shape), "float16": base64.b64encode(array.astype(STORED).tobytes()).decode()}


def _decode(values: Mapping[str, Any]) -> npt.NDArray[np.float16]:
    array = np.frombuffer(base64.b64decode(values["float16"], validate=True), dtype=STORED)
    return array.reshape(values["shape"])
