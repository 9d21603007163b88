"""Exhaustive scores of tokens in memory: what fitting and evaluation compare classes by.

Shapes: N images, K classes, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.progress import Progress, no_progress
from avarc_cli.scoring.batching import auto_tokens
from avarc_cli.scoring.engine import Request, score_group
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.scores import FloatN, score_function


def log_likelihoods(
    model: LikelihoodModel,
    tokens_NL: Tensor,
    class_id_K: Sequence[int],
    *,
    device: torch.device,
    progress: Progress = no_progress,
) -> FloatN:
    """log p(x | y) in nats, (N, K) float64."""
    plan = parse_plan("exhaustive", segments=len(model.segment_ends), candidates=len(class_id_K), samples=1)
    request = Request(
        candidates=np.array(class_id_K, dtype=np.int64),
        plan=plan,
        score=score_function("log-likelihood"),
        log_prior=np.zeros(len(class_id_K)),
        tokens_per_batch=auto_tokens(model, plan, device, fixed=False),
    )
    tokens_N1L = tokens_NL[:, None].numpy()
    group, rows = request.images_per_group(model), []
    for start in range(0, len(tokens_N1L), group):
        rows += [image.scores for image in score_group(model, tokens_N1L[start : start + group], request)]
        progress(len(rows), len(tokens_N1L))
    return np.stack(rows) if rows else np.empty((0, len(class_id_K)))
