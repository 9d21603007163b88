"""Offsets between old and added classes, fitted without a single old image.

An addition is fitted to its own images alone; nobody told it what the other classes' images look like, so its scores
may lie too high or too low beside theirs. One number a new class, in nats, is fitted so that a softmax over scores
separates held-out images of the new classes from images that the model itself draws of its old ones.

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

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.var.sampling import stream
from avarc_cli.scoring.exhaustive import log_likelihoods
from avarc_cli.scoring.scores import FloatN

RIVALS = 20  # old classes that are compared with: the ones that the new images are likeliest under
DRAWN = 20  # images of each
RIDGE = 1e-3  # keeps the fit finite where the classes are perfectly apart
ITERATIONS = 200


@dataclass(frozen=True)
class Calibration:
    """An offset in nats, and what it does to the images that it was fitted on.

    old, new: share of right answers among images drawn of old classes, and among held-out images of the new one, as
    (without the offset, with it).
    """

    offset: float
    old: tuple[float, float]
    new: tuple[float, float]


def draw(model: LikelihoodModel, classes: Sequence[int], seed: int, device: torch.device) -> Tensor:
    """Tokens (len(classes) * DRAWN, L) drawn from p(x | class), class by class; every image by its own stream."""
    tokens = []
    for class_id in classes:
        streams = [stream(seed, class_id, i, device) for i in range(DRAWN)]
        class_B = torch.full((DRAWN,), class_id, device=device)
        tokens.append(model.sample(class_B, guidance=0.0, generators=streams).cpu())
    return torch.cat(tokens)


def calibrate(
    model: LikelihoodModel, old_offsets: FloatN, new_images_NL: Tensor, *, seed: int, device: torch.device
) -> Calibration:
    """The offset of the model's last class.

    Args:
        model: the model with the new class, which comes last. old_offsets: of all its other classes.
        new_images_NL: tokens of images of the new class that it was not trained on.
    """
    new = len(old_offsets)
    rivals = _rivals(model, new_images_NL, new, device)
    tokens_NL = torch.cat([draw(model, rivals, seed, device), new_images_NL])
    scores_NK = log_likelihoods(model, tokens_NL, [*rivals, new], device=device)
    scores_NK[:, :-1] += old_offsets[rivals]
    label_N = np.arange(len(rivals) + 1).repeat([DRAWN] * len(rivals) + [len(new_images_NL)])
    # Drawn images are more typical of their class than real ones, so a gain for the new class cannot be trusted.
    offset = min(0.0, float(fit_offsets(scores_NK, label_N, free=1)[0]))
    with_offset = scores_NK + np.array([0.0] * len(rivals) + [offset])
    right = [scores.argmax(1) == label_N for scores in (scores_NK, with_offset)]
    is_new = label_N == len(rivals)
    old_share, new_share = ([float(hits[who].mean()) for hits in right] for who in (~is_new, is_new))
    return Calibration(offset, (old_share[0], old_share[1]), (new_share[0], new_share[1]))


def fit_offsets(scores_NK: FloatN, label_N: npt.NDArray[np.int64], *, free: int) -> FloatN:
    """Offsets (free,) of the last `free` columns that make softmax(a (scores + offsets)) likeliest, with a > 0.

    Every class weighs the same, however many images it has. Convex in a and a * offsets.
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


def _rivals(model: LikelihoodModel, tokens_NL: Tensor, old: int, device: torch.device) -> list[int]:
    """The old classes that the new images are likeliest under: at most RIVALS, all where there are no more."""
    if old <= RIVALS:
        return list(range(old))
    looked_at = tokens_NL[:: max(1, len(tokens_NL) // RIVALS)]
    log_p_K = log_likelihoods(model, looked_at, range(old), device=device).max(0)
    return sorted(np.argsort(-log_p_K)[:RIVALS].tolist())
