"""The images that a first cut is fitted to, which the model draws from its own classes.

Shapes: M drawn images of all classes, G images, B images of a batch, N candidates, L tokens, D numbers of a summary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avarc_cli.layers.sampling import generator_of
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.progress import Progress, no_progress
from avarc_cli.scoring.first_cut import FirstCut, discriminants
from avarc_cli.scoring.scores import FloatN, IntN, TokensN

LEAST_CLASSES = 100  # with fewer, the first segments cost little as they are
DRAWN = 16  # images of each class, at least
LEAST_DRAWN = 2000  # images of all classes: of fewer, the correlations of hundreds of numbers cannot be estimated
BATCH = 64  # images drawn together


def fit_first_cut(
    model: LikelihoodModel,
    candidates_N: IntN,
    *,
    seed: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> FirstCut | None:
    """The first cut over these candidates; None if there are few, or the model has no summary of an image.

    `progress` is called with (images drawn, images in all).
    """
    if not count_drawn(model, len(candidates_N)):
        return None
    guidance = 0.0 if model.unconditional is None else model.default_guidance  # images that are typical of their class
    each = count_drawn(model, len(candidates_N)) // len(candidates_N)
    x_MD, class_M = [], np.repeat(candidates_N, each)
    for start in range(0, len(class_M), BATCH):
        rows = range(start, min(start + BATCH, len(class_M)))
        generators = [generator_of(seed, int(class_M[row]), row % each, device=device) for row in rows]
        class_B = torch.from_numpy(class_M[rows.start : rows.stop]).to(device)
        x_MD.append(_summaries(model, model.sample(class_B, guidance=guidance, generators=generators)))
        progress(rows.stop, len(class_M))
    return discriminants(np.concatenate(x_MD).reshape(len(candidates_N), each, -1))


def count_drawn(model: LikelihoodModel, candidates: int) -> int:
    """Images that `fit_first_cut` draws."""
    if candidates < LEAST_CLASSES or not model.has_summary:
        return 0
    return candidates * max(DRAWN, -(-LEAST_DRAWN // candidates))


def summaries(model: LikelihoodModel, tokens_GL: TokensN) -> FloatN:
    """`LikelihoodModel.summary` of images one by one, (G, D): it does not depend on the other images, to the bit."""
    return np.concatenate([_summaries(model, torch.from_numpy(tokens_L[None])) for tokens_L in tokens_GL])


def _summaries(model: LikelihoodModel, tokens_BL: Tensor) -> FloatN:
    x_BD: FloatN = model.summary(tokens_BL).cpu().numpy().astype(np.float64)
    return x_BD
