"""A first cut over all classes that takes no pass of the model: how close an image is to the mean of each class.

The means are those of images that the model itself draws from its classes, so no image but these is needed. What is
compared is a linear summary of an image's tokens (`LikelihoodModel.summary`), in the few directions in which the means
differ most compared with the images of one class (Fisher's linear discriminants; Hastie, Tibshirani, Friedman, The
Elements of Statistical Learning, 4.3). An image's score for a class is then -|x - mean|^2 / 2, the log-density of a
Gaussian up to a constant of the image. It only drops classes; those that are left are scored by the model.

Shapes: M drawn images, G images, N candidates, D numbers of a summary, R directions.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avarc_cli.layers.sampling import generator_of
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.scores import FloatN, IntN

LEAST_CLASSES = 100  # with fewer, the first segments cost little as they are
DRAWN = 8  # images of each class
DIRECTIONS = 64
SHRINKAGE = 0.05  # of the mean variance, added to every direction: there may be fewer images than directions
BATCH = 64  # images drawn together
STORED = np.dtype("<f2")  # half precision: a plan for 1,000 classes has 200 KiB


@dataclass(frozen=True, eq=False)
class FirstCut:
    """Directions, and the mean of each candidate in them."""

    direction_DR: npt.NDArray[np.float16]
    """Scaled so that images of one class have variance 1 in each."""
    mean_NR: npt.NDArray[np.float16]
    """In the order of the candidates."""

    def scores(self, model: LikelihoodModel, tokens_GL: IntN) -> FloatN:
        """-|x - mean|^2 / 2 of each image and candidate, (G, N). They do not depend on the other images."""
        x_GD = np.concatenate([_summaries(model, torch.from_numpy(tokens_GL[g : g + 1])) for g in range(len(tokens_GL))])
        x_GR, mean_NR = x_GD @ self.direction_DR.astype(np.float64), self.mean_NR.astype(np.float64)
        square_GN = (x_GR**2).sum(1)[:, None] - 2 * x_GR @ mean_NR.T + (mean_NR**2).sum(1)
        scores_GN: FloatN = -square_GN / 2
        return scores_GN

    def to_dict(self) -> dict[str, Any]:
        """The two arrays as JSON can hold them."""
        return {name: _encode(getattr(self, name)) for name in ("direction_DR", "mean_NR")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FirstCut:
        """What `to_dict` made. Raises: ValueError, KeyError, TypeError for anything else."""
        return cls(_decode(values["direction_DR"]), _decode(values["mean_NR"]))


def fit(model: LikelihoodModel, candidates_N: IntN, *, seed: int, device: torch.device) -> FirstCut | None:
    """The first cut over these candidates; None if there are few, or the model has no summary of an image."""
    if len(candidates_N) < LEAST_CLASSES or not model.has_summary:
        return None
    x_MD, class_M = [], np.repeat(candidates_N, DRAWN)
    for start in range(0, len(class_M), BATCH):
        rows = range(start, min(start + BATCH, len(class_M)))
        generators = [generator_of(seed, int(class_M[row]), row % DRAWN, device=device) for row in rows]
        class_B = torch.from_numpy(class_M[rows.start : rows.stop]).to(device)
        x_MD.append(_summaries(model, model.sample(class_B, guidance=0.0, generators=generators)))
    return discriminants(np.concatenate(x_MD).reshape(len(candidates_N), DRAWN, -1))


def discriminants(x_NMD: FloatN) -> FirstCut:
    """The directions and means of these images, as many of each class."""
    mean_ND = x_NMD.mean(1)
    within_MD = (x_NMD - mean_ND[:, None]).reshape(-1, x_NMD.shape[-1])
    covariance_DD = within_MD.T @ within_MD / max(1, len(within_MD) - len(mean_ND))
    covariance_DD += (SHRINKAGE * np.trace(covariance_DD) / len(covariance_DD) + 1e-12) * np.eye(len(covariance_DD))
    variance_D, vector_DD = np.linalg.eigh(covariance_DD)
    whiten_DD = vector_DD / np.sqrt(variance_D)
    between_ND = (mean_ND - mean_ND.mean(0)) @ whiten_DD
    direction_RD = np.linalg.svd(between_ND, full_matrices=False)[2][:DIRECTIONS]
    direction_DR = (whiten_DD @ direction_RD.T).astype(STORED)
    return FirstCut(direction_DR, (mean_ND @ direction_DR.astype(np.float64)).astype(STORED))


def _summaries(model: LikelihoodModel, tokens_BL: torch.Tensor) -> FloatN:
    x_BD: FloatN = model.summary(tokens_BL).cpu().numpy().astype(np.float64)
    return x_BD


def _encode(array: npt.NDArray[np.float16]) -> dict[str, Any]:
    return {"shape": list(array.shape), "float16": base64.b64encode(array.astype(STORED).tobytes()).decode()}


def _decode(values: Mapping[str, Any]) -> npt.NDArray[np.float16]:
    array = np.frombuffer(base64.b64decode(values["float16"], validate=True), dtype=STORED)
    return array.reshape(values["shape"])
