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
TOKEN_NOISE = {"fp32": 2e-6, "tf32": 1.2e-3, "bf16": 1e-2, "fp16": 1.2e-3, "int8": 6e-2, "fp8": 0.12}


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

    segments: so many were scored; scores: what the stage ranked by, prior included;
    log_likelihood: log p(x|y) alone, averaged over samples.
    """

    segments: int
    candidates: IntN
    scores: FloatN
    log_likelihood: FloatN
    survivors: IntN
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """All that scoring one image gave.

    stages: those that the image took part in; a decided image skips the rest.
    order: candidate positions, best first: who survived longest, then who scored higher.
    scores: each candidate's score in the last stage that it took part in (so comparable within a stage only).
    posterior: probability of each candidate, see `posterior`.
    margin: winner minus runner-up in the last stage where both were scored; inf with one candidate.
    tokens_scored: token log-probabilities computed for this image.
    token_log_prob: (N, L) float32 of the image's own tokens, if asked for and the plan has one stage.
    segment_log_prob: (N, S, K) sums of log p(token) over each segment of each sample, if asked for.
    """

    stages: tuple[StageScores, ...]
    order: IntN
    scores: FloatN
    posterior: FloatN
    margin: float
    tokens_scored: int
    unconditional: float
    token_log_prob: npt.NDArray[np.float32] | None = None
    segment_log_prob: npt.NDArray[np.float64] | None = None

    @property
    def segments(self) -> int:
        """Segments that the winner was scored on."""
        return self.stages[-1].segments


def summarise(
    stages: tuple[StageScores, ...],
    num_candidates: int,
    *,
    log_prior_N: FloatN,
    tokens_scored: int,
    temperature: float = 1.0,
    unconditional: float = math.nan,
    token_log_prob: npt.NDArray[np.float32] | None = None,
    segment_log_prob: npt.NDArray[np.float64] | None = None,
) -> ImageScores:
    """Put the stages of one image together. Stage scores already include the prior."""
    by_stage_JN = np.full((len(stages), num_candidates), np.nan)
    for j, stage in enumerate(stages):
        by_stage_JN[j, stage.candidates] = stage.scores
    reached_N = (~np.isnan(by_stage_JN)).sum(0)  # stages; at least the first
    scores_N = by_stage_JN[reached_N - 1, np.arange(num_candidates)]
    order = np.lexsort((np.arange(num_candidates), -scores_N, -reached_N))
    margin = math.inf
    if num_candidates > 1:
        last_N = by_stage_JN[reached_N[order[1]] - 1]
        margin = float(last_N[order[0]] - last_N[order[1]])
    return ImageScores(
        stages=stages,
        order=order,
        scores=scores_N - log_prior_N,
        posterior=posterior(by_stage_JN, temperature),
        margin=margin,
        tokens_scored=tokens_scored,
        unconditional=unconditional,
        token_log_prob=token_log_prob,
        segment_log_prob=segment_log_prob,
    )


def posterior(by_stage_JXN: FloatN, temperature: float = 1.0) -> FloatN:
    """p(y | x) over the candidates, (..., N), summing to one.

    A stage's softmax of score / temperature splits the probability that its candidates hold together: those it drops
    keep their share, those it keeps pass theirs on to the next stage, which has seen more of the image. A share is
    what its candidate can be expected to have in the end: given a part of an image, the expectation of the posterior
    given all of it is the posterior given the part.

    Args:
        by_stage_JXN: scores, stage by stage, (J, ..., N); nan marks who took no part in a stage.
        temperature: above 1 evens probabilities out (Guo et al. 2017, arXiv:1706.04599).
    """
    result = np.zeros(by_stage_JXN.shape[1:])
    for j, scores in enumerate(by_stage_JXN):
        part = ~np.isnan(scores)
        mass = np.where(part, result, 0.0).sum(-1, keepdims=True) if j else 1.0
        score = np.where(part, scores, -np.inf)
        best = np.where(part.any(-1, keepdims=True), score.max(-1, keepdims=True), 0.0)  # a decided image has no part
        share = np.exp((score - best) / temperature)
        result = np.where(part, share * mass / share.sum(-1, keepdims=True).clip(min=1.0), result)
    return result


def near_tie(margin: float, num_tokens: int, precision: str) -> bool:
    """Whether rounding could have chosen the winner."""
    return margin < rounding_noise(num_tokens, precision)


def rounding_noise(num_tokens: int, precision: str) -> float:
    """Two standard deviations of the rounding error of a difference of two scores of so many tokens, in nats."""
    return 2 * TOKEN_NOISE[precision] * math.sqrt(2 * num_tokens)
