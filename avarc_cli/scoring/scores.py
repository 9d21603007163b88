"""From log-likelihoods to what is reported: score functions, ranking, posterior, near-ties.

Shapes: N candidates. All in nats, float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avarc_cli.errors import UsageError

FloatN = npt.NDArray[np.float64]
IntN = npt.NDArray[np.int64]

# Standard deviation of the rounding error of one token's log-probability, in nats, against float64
# (docs/numbers.md has the command and the figures); errors of L tokens add up as sqrt(L).
TOKEN_NOISE = {"fp32": 2e-6, "tf32": 1.2e-3, "bf16": 1e-2, "fp16": 1.2e-3}


@dataclass(frozen=True)
class ScoreFunction:
    """A score to rank candidates by. `formula`: (log p(x|y) of each candidate (N,), log p(x) or nan) -> (N,)."""

    name: str
    needs_unconditional: bool
    formula: Callable[[FloatN, float], FloatN]


SCORE_FUNCTIONS = {
    f.name: f
    for f in (
        ScoreFunction("log-likelihood", False, lambda log_p_N, _: log_p_N),
        ScoreFunction("pmi", True, lambda log_p_N, log_p: log_p_N - log_p),  # pointwise mutual information
    )
}


def score_function(name: str) -> ScoreFunction:
    """Raises UsageError for an unknown name, listing the known ones."""
    if name not in SCORE_FUNCTIONS:
        raise UsageError(f"no score function '{name}'", f"there are {', '.join(SCORE_FUNCTIONS)}")
    return SCORE_FUNCTIONS[name]


@dataclass(frozen=True, kw_only=True)
class StageScores:
    """One stage of one image. Positions index the run's candidate list.

    scores: what the stage ranked by, prior included; log_likelihood: log p(x|y) alone, averaged over samples.
    """

    candidates: IntN
    scores: FloatN
    log_likelihood: FloatN
    survivors: IntN
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """All that scoring one image gave.

    order: candidate positions, best first: who survived longest, then who scored higher.
    scores: each candidate's score in the last stage that it took part in (so comparable within a stage only).
    posterior: probability of each candidate, see `posterior`.
    margin: winner minus runner-up in the last stage where both were scored; inf with one candidate.
    tokens_scored: token log-probabilities computed for this image.
    token_log_prob: (N, L) float32 of the image's own tokens, if asked for and the plan has one stage.
    """

    stages: tuple[StageScores, ...]
    order: IntN
    scores: FloatN
    posterior: FloatN
    margin: float
    tokens_scored: int
    unconditional: float
    token_log_prob: npt.NDArray[np.float32] | None = None


def rank(scores_N: FloatN) -> IntN:
    """Positions from the best score to the worst; equal scores in the order of the candidates."""
    return np.argsort(-scores_N, kind="stable")


def summarise(
    stages: tuple[StageScores, ...],
    num_candidates: int,
    *,
    log_prior_N: FloatN,
    tokens_scored: int,
    unconditional: float = math.nan,
    token_log_prob: npt.NDArray[np.float32] | None = None,
) -> ImageScores:
    """Put the stages of one image together. Stage scores already include the prior."""
    reached = np.zeros(num_candidates, dtype=np.int64)
    scores = np.full(num_candidates, -np.inf)
    for stage in stages:
        reached[stage.candidates] += 1
        scores[stage.candidates] = stage.scores
    order = np.lexsort((np.arange(num_candidates), -scores, -reached))
    margin = math.inf
    if num_candidates > 1:
        last = stages[reached[order[1]] - 1]
        by_position = dict(zip(last.candidates.tolist(), last.scores.tolist(), strict=True))
        margin = by_position[int(order[0])] - by_position[int(order[1])]
    return ImageScores(
        stages=stages,
        order=order,
        scores=scores - log_prior_N,
        posterior=posterior(stages, num_candidates),
        margin=margin,
        tokens_scored=tokens_scored,
        unconditional=unconditional,
        token_log_prob=token_log_prob,
    )


def posterior(stages: tuple[StageScores, ...], num_candidates: int) -> FloatN:
    """p(y | x) over the candidates, (N,), summing to one.

    A stage's softmax splits the probability that its candidates hold together: those it drops keep their
    share, those it keeps pass theirs on to the next stage, which has seen more of the image.
    """
    result = np.zeros(num_candidates)
    mass = 1.0
    for stage in stages:
        share = np.exp(stage.scores - stage.scores.max())
        share *= mass / share.sum()
        result[stage.candidates] = share
        mass = float(result[stage.survivors].sum())
    return result


def near_tie(margin: float, num_tokens: int, precision: str) -> bool:
    """Whether rounding could have chosen the winner: a margin below two standard deviations of its own noise."""
    return margin < 2 * TOKEN_NOISE[precision] * math.sqrt(2 * num_tokens)
