"""Exhaustive scores of tokens in memory, for fitting, evaluation, explanations and exports.

Shapes: N images, K classes, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.progress import Progress, no_progress
from avarc_cli.scoring.batching import auto_tokens
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import FloatN, score_function


def log_likelihoods(
    model: LikelihoodModel,
    tokens_NL: Tensor,
    class_ids_K: Sequence[int],
    *,
    device: torch.device,
    progress: Progress = no_progress,
) -> FloatN:
    """log p(x | y) in nats, (N, K) float64.

    Args:
        tokens_NL: int64, on the host. class_ids_K: the unconditional class may be one of them.
        device: the model's; it determines the batch size.
    Raises: AvarcError if the model returns numbers that are not finite.
    """
    plan = _exhaustive(model, len(class_ids_K))
    request = _request(class_ids_K, plan, auto_tokens(model, plan, device, fixed=False))
    tokens_N1L = tokens_NL[:, None].numpy()
    group, rows = request.images_per_group(model), []
    for start in range(0, len(tokens_N1L), group):
        rows += [image.scores for image in score_group(model, tokens_N1L[start : start + group], request)]
        progress(len(rows), len(tokens_N1L))
    return np.stack(rows) if rows else np.empty((0, len(class_ids_K)))


def token_log_probs(
    model: LikelihoodModel, tokens_NL: Tensor, class_ids_K: Sequence[int] | np.ndarray, tokens_per_batch: int
) -> npt.NDArray[np.float32]:
    """log p(token | tokens before, class) of every token under every class, in nats, (N, K, L) float32.

    Args:
        tokens_NL: int64, on the host; at least one image. All images are held in memory at once.
        class_ids_K: the unconditional class may be one of them.
        tokens_per_batch: tokens of all pairs of one forward pass; at least one pair is scored at a time.
    Raises: AvarcError if the model returns numbers that are not finite.
    """
    request = _request(class_ids_K, _exhaustive(model, len(class_ids_K)), tokens_per_batch, keep_tokens=True)
    images = score_group(model, tokens_NL[:, None].numpy(), request)
    return np.stack([image.token_log_prob for image in images if image.token_log_prob is not None])


def _exhaustive(model: LikelihoodModel, classes: int) -> Plan:
    return parse_plan("exhaustive", segments=len(model.segment_ends), candidates=classes, samples=1)


def _request(
    class_ids_K: Sequence[int] | np.ndarray, plan: Plan, tokens_per_batch: int, *, keep_tokens: bool = False
) -> ScoringRequest:
    return ScoringRequest(
        candidates=np.array(class_ids_K, dtype=np.int64),
        plan=plan,
        score=score_function("log-likelihood"),
        log_prior=np.zeros(len(class_ids_K)),
        tokens_per_batch=tokens_per_batch,
        keep_tokens=keep_tokens,
    )
