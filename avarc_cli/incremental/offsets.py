"""Offsets between old and added classes, fitted without a single old image.

A class is fitted to its own images alone, so its scores may be too high or too low compared with those of others. One
number per new class, in nats, is fitted so that a softmax over scores separates validation images of the new class from
images that the model itself samples from its old ones.

Shapes: N images, K classes, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.incremental.closest import closest_classes
from avarc_cli.layers.sampling import generator_of
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.progress import Progress, no_progress
from avarc_cli.scoring.exhaustive import log_likelihoods
from avarc_cli.scoring.scores import FloatN

CONTRAST_CLASSES = 20  # old classes to compare with: those under which the new images are most likely
SAMPLED = 20  # images of each
RIDGE = 1e-3  # keeps the fit finite where the classes are perfectly separable
ITERATIONS = 200  # of L-BFGS at most; it converges in tens


@dataclass(frozen=True)
class Calibration:
    """An offset, and the accuracy on the images that it was fitted on: (without the offset, with it)."""

    offset: float  # nats
    old: tuple[float, float]  # on images sampled from old classes
    new: tuple[float, float]  # on validation images of the new class


def sample(model: LikelihoodModel, classes: Sequence[int], seed: int, device: torch.device) -> Tensor:
    """Tokens (len(classes) * SAMPLED, L) drawn from p(x | class), class by class; each image has its own generator."""
    tokens = []
    for class_id in classes:
        generators = [generator_of(seed, class_id, i, device=device) for i in range(SAMPLED)]
        class_B = torch.full((SAMPLED,), class_id, device=device)
        tokens.append(model.sample(class_B, guidance=0.0, generators=generators).cpu())
    return torch.cat(tokens)


def calibrate(
    model: LikelihoodModel,
    old_offsets: FloatN,
    new_images_NL: Tensor,
    *,
    seed: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> Calibration:
    """The offset of the model's last class.

    Args:
        model: the model with the new class, which comes last. old_offsets: of all its other classes.
        new_images_NL: tokens of images of the new class that it was not trained on.
        progress: of the search for the old classes to compare with.
    """
    new = len(old_offsets)
    closest = closest_classes(model, new_images_NL, range(new), CONTRAST_CLASSES, device=device, progress=progress)
    contrast = sorted(closest)
    tokens_NL = torch.cat([sample(model, contrast, seed, device), new_images_NL])
    scores_NK = log_likelihoods(model, tokens_NL, [*contrast, new], device=device)
    scores_NK[:, :-1] += old_offsets[contrast]
    label_N = np.arange(len(contrast) + 1).repeat([SAMPLED] * len(contrast) + [len(new_images_NL)])
    # Sampled images are more typical of their class than real ones, so a gain for the new class cannot be trusted.
    offset = min(0.0, float(fit_offsets(scores_NK, label_N, free=1)[0]))
    with_offset = scores_NK + np.array([0.0] * len(contrast) + [offset])
    before_N, after_N = (scores.argmax(1) == label_N for scores in (scores_NK, with_offset))
    is_new_N = label_N == len(contrast)
    return Calibration(
        offset=offset,
        old=(float(before_N[~is_new_N].mean()), float(after_N[~is_new_N].mean())),
        new=(float(before_N[is_new_N].mean()), float(after_N[is_new_N].mean())),
    )


def fit_offsets(scores_NK: FloatN, label_N: npt.NDArray[np.int64], *, free: int) -> FloatN:
    """Offsets (free,) of the last `free` columns that make softmax(a (scores + offsets)) likeliest, with a > 0.

    Every class has the same weight, however many images it has. Convex in a and a * offsets.
    """
    scores = torch.from_numpy(scores_NK - scores_NK.max(1, keepdims=True))
    spread = float(scores.std()) or 1.0  # a and the shifts become numbers of about 1
    scores, label = scores / spread, torch.from_numpy(label_N)
    weight_K = 1.0 / torch.bincount(label, minlength=scores.shape[1]).clamp_min(1).double()
    log_a = torch.zeros((), dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(free, dtype=torch.float64, requires_grad=True)
    fixed = torch.zeros(scores.shape[1] - free, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([log_a, shift], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = log_a.exp() * (scores + torch.cat([fixed, shift]))
        value = F.cross_entropy(logits, label, weight=weight_K) + RIDGE * (log_a.exp().square() + shift.square().sum())
        value.backward()
        return value

    optimizer.step(loss)
    offsets: FloatN = shift.detach().numpy() * spread
    return offsets
