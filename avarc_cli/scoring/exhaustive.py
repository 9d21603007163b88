"""Exhaustive scores of tokens in memory, for fitting, evaluation, explanations and exports.

Shapes: N images, K classes, O orders, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.progress import Progress, no_progress
from avarc_cli.scoring.batching import auto_tokens
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.orders import choose_orders
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import FloatN, IntN, score_function


def log_likelihoods(
    model: LikelihoodModel,
    tokens_NL: Tensor,
    class_ids_K: Sequence[int],
    *,
    device: torch.device,
    progress: Progress = no_progress,
) -> FloatN:
    """log p(x | y) in nats, (N, K) float64, averaged over the model's default orders where it has any.

    Args:
        tokens_NL: int64, or (N, L, Z) float32 of continuous tokens, on the host.
        class_ids_K: the unconditional class may be one of them.
        device: the model's; it determines the batch size.
    Raises: AvarcError if the model returns numbers that are not finite.
    """
    groups, done = ImageGroups.choose(class_ids_K, model, device), 0
    rows = [np.empty((0, len(class_ids_K)))]
    for start in range(0, len(tokens_NL), groups.size):
        rows.append(groups.score(model, tokens_NL[start : start + groups.size], start))
        done += len(rows[-1])
        progress(done, len(tokens_NL))
    return np.concatenate(rows)


@dataclass(frozen=True)
class ImageGroups:
    """Images that `log_likelihoods` scores at once."""

    class_ids: tuple[int, ...]
    """Of the K classes."""

    tokens_per_batch: int
    """Tokens of all pairs of one forward pass."""

    size: int
    """Images of a group."""

    @classmethod
    def choose(cls, class_ids_K: Sequence[int], model: LikelihoodModel, device: torch.device) -> ImageGroups:
        """Groups for this device."""
        orders = choose_orders(None, 0, model, "the model")
        plan = _exhaustive(model, len(class_ids_K), orders.count)
        tokens = auto_tokens(model, plan, device, fixed=False)
        return cls(tuple(class_ids_K), tokens, _request(class_ids_K, plan, tokens).images_per_group(model))

    def score(self, model: LikelihoodModel, tokens_nL: Tensor, first: int) -> FloatN:
        """log p(x | y) in nats of the images of one group, (n, K) float64.

        Args:
            first: position of the first of them among all images, on which orders depend.
        """
        orders = choose_orders(None, 0, model, "the model")
        request = _request(self.class_ids, _exhaustive(model, len(self.class_ids), orders.count), self.tokens_per_batch)
        order_nOL = orders.of(np.arange(first, first + len(tokens_nL)), tokens_nL.shape[1], orders.count)
        images = score_group(model, tokens_nL[:, None].numpy(), request, order_nOL)
        return np.stack([image.scores for image in images])


def token_log_probs(
    model: LikelihoodModel, tokens_NL: Tensor, class_ids_K: Sequence[int] | np.ndarray, tokens_per_batch: int
) -> npt.NDArray[np.float32]:
    """As `order_log_probs`, in the order of the positions alone, (N, K, L) float32."""
    return order_log_probs(model, tokens_NL, class_ids_K, tokens_per_batch, None)[:, :, 0]


def order_log_probs(
    model: LikelihoodModel,
    tokens_NL: Tensor,
    class_ids_K: Sequence[int] | np.ndarray,
    tokens_per_batch: int,
    order_NOL: IntN | None,
) -> npt.NDArray[np.float32]:
    """log p(token | tokens before, class) under every class in each order, in nats, (N, K, O, L) float32.

    Args:
        tokens_NL: int64, on the host; at least one image. All images are held in memory at once.
        class_ids_K: the unconditional class may be one of them.
        tokens_per_batch: tokens of all pairs of one forward pass; at least one pair is scored at a time.
        order_NOL: as `engine.score_group` has them.
    Returns: at the tokens' own positions, whatever the order.
    Raises: AvarcError if the model returns numbers that are not finite.
    """
    plan = _exhaustive(model, len(class_ids_K), 1 if order_NOL is None else order_NOL.shape[1])
    request = _request(class_ids_K, plan, tokens_per_batch, keep_tokens=True)
    images = score_group(model, tokens_NL[:, None].numpy(), request, order_NOL)
    return np.stack([image.token_log_prob for image in images if image.token_log_prob is not None])


def _exhaustive(model: LikelihoodModel, classes: int, orders: int) -> Plan:
    return parse_plan("exhaustive", segments=len(model.segment_ends), candidates=classes, samples=1, orders=orders)


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
