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
TokensN = npt.NDArray[np.int64] | npt.NDArray[np.float32]
"""Codes of a codebook, or continuous tokens, which have one more axis, Z."""

# Standard deviation of the rounding error of one token's log-probability, in nats, against float64
# (docs/numbers.md has the command and the measurements). Errors of L tokens add up as sqrt(L).
TOKEN_NOISE = {"fp32": 2e-6, "tf32": 1.2e-3, "bf16": 1e-2, "fp16": 1.2e-3, "int16": 2e-3, "int8": 6e-2, "fp8": 0.12}


@dataclass(frozen=True)
class ScoreFunction:
    """A score to rank candidates by."""

    name: str
    """A value of --score."""
    needs_unconditional: bool
    """Whether the formula uses log p(x)."""
    formula: Callable[[FloatN, FloatN], FloatN]
    """(log p(x|y), log p(x) or nan), which are broadcast -> scores."""


# Named functions: requests are sent to other processes, where a lambda could not be read.


def _log_likelihood(log_p_N: FloatN, _: FloatN) -> FloatN:
    return log_p_N


def _pointwise_mutual_information(log_p_N: FloatN, log_p: FloatN) -> FloatN:
    return log_p_N - log_p


SCORE_FUNCTIONS = {
    f.name: f
    for f in (
        ScoreFunction("log-likelihood", False, _log_likelihood),
        ScoreFunction("pmi", True, _pointwise_mutual_information),
    )
}


def score_function(name: str) -> ScoreFunction:
    """Raises UsageError for an unknown name, listing the known ones."""
    if name not in SCORE_FUNCTIONS:
        raise UsageError(f"no score function '{name}'", f"there are {', '.join(SCORE_FUNCTIONS)}")
    return SCORE_FUNCTIONS[name]


@dataclass(frozen=True, kw_only=True)
class StageScores:
    """One stage of one image. Positions are those of the request's candidate list."""

    segments: int
    """Segments that the scores stand for."""
    tokens: int
    """Tokens in them."""
    samples: int = 1
    """Samples of the image that the scores are averaged over."""
    orders: int = 1
    """Orders that they were scored in."""
    estimated: bool = False
    """Whether the scores are estimates from a part of the segments."""
    precision: str | None = None
    """That they were computed in; None for the run's."""
    candidates: IntN
    """Positions of the candidates that took part, (M,)."""
    scores: FloatN
    """What the stage ranked them by, prior included, (M,)."""
    log_likelihood: FloatN
    """log p(x|y) alone, averaged over samples, (M,)."""
    survivors: IntN
    """Positions of the candidates that the stage kept."""
    seconds: float
    """The image's share of the stage's time."""


@dataclass(frozen=True)
class Settled:
    """How a cascade of two precisions came to the prediction of an image (`scoring.cascade`)."""

    precision: str
    """That the winner was decided in."""
    survivors: bool
    """Whether the exact precision decided about survivors of earlier stages as well."""
    tokens: int
    """Token log-probabilities computed in the exact precision."""


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """The scores of one image."""

    stages: tuple[StageScores, ...]
    """Stages that the image took part in; a decided image skips the rest."""
    order: IntN
    """Positions of the candidates, best first: by the stages they survived, then by score, (N,)."""
    scores: FloatN
    """Each candidate's score, without prior, in its last stage; comparable only within a stage, (N,)."""
    reached: IntN
    """In how many stages each candidate took part, (N,); the last of them is `stages[reached - 1]`."""
    posterior: FloatN
    """Probability of each candidate (see `posterior`), (N,)."""
    margin: float
    """Winner minus runner-up, nats, in the last stage where both were scored; inf with one candidate."""
    tokens_scored: int
    """Token log-probabilities computed for this image."""
    unconditional: float
    """log p(x) in the image's last stage; nan if the score does not need it."""
    token_log_prob: npt.NDArray[np.float32] | None = None
    """Of the image's own tokens in each order, (N, O, L), if requested; 0 where a token was not scored."""
    segment_log_prob: npt.NDArray[np.float64] | None = None
    """Sums of log p(token) over each segment of each order and sample, (N, O, S, K), if requested; nan where not
    scored."""

    estimates: npt.NDArray[np.float64] | None = None
    """Estimates of log p(x|y) from the first segments, (N, E), if requested."""

    settled: Settled | None = None
    """How a cascade of precisions came to its prediction; None without one."""

    @property
    def segments(self) -> int:
        """Segments that the winner was scored on."""
        return self.stages[-1].segments


def summarize(
    stages: tuple[StageScores, ...],
    num_candidates: int,
    *,
    log_prior_N: FloatN,
    tokens_scored: int,
    temperature: float = 1.0,
    unconditional: float = math.nan,
    token_log_prob: npt.NDArray[np.float32] | None = None,
    segment_log_prob: npt.NDArray[np.float64] | None = None,
    estimates: npt.NDArray[np.float64] | None = None,
) -> ImageScores:
    """Combine the stages of one image. log_prior_N: what their scores include as prior."""
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
        reached=reached_N,
        posterior=posterior(by_stage_JN, temperature),
        margin=margin,
        tokens_scored=tokens_scored,
        unconditional=unconditional,
        token_log_prob=token_log_prob,
        segment_log_prob=segment_log_prob,
        estimates=estimates,
    )


def posterior(by_stage_JXN: FloatN, temperature: float = 1.0) -> FloatN:
    """p(y | x) over the candidates, (..., N), summing to one.

    Each stage divides the probability of its candidates among them by a softmax of score / temperature. Candidates that
    it drops keep that probability; the next stage, which has seen more of the image, divides the rest again. A dropped
    candidate's probability is its expected final one: the expectation of the posterior given the whole image is the
    posterior given the part of it.

    Args:
        by_stage_JXN: scores of each stage, (J, ..., N); nan for candidates that took no part in it.
        temperature: above 1 evens probabilities out (Guo et al. 2017, arXiv:1706.04599).
    """
    result = np.zeros(by_stage_JXN.shape[1:])
    for j, scores in enumerate(by_stage_JXN):
        part = ~np.isnan(scores)
        mass = np.where(part, result, 0.0).sum(-1, keepdims=True) if j else 1.0
        score = np.where(part, scores, -np.inf)
        best = np.where(part.any(-1, keepdims=True), score.max(-1, keepdims=True), 0.0)  # a decided image has no part
        weight = np.exp((score - best) / temperature)
        result = np.where(part, weight * mass / weight.sum(-1, keepdims=True).clip(min=1.0), result)
    return result


def near_tie(margin: float, num_tokens: int, precision: str) -> bool:
    """Whether rounding could have chosen the winner."""
    return margin < rounding_noise(num_tokens, precision)


def rounding_noise(num_tokens: int, precision: str) -> float:
    """Two standard deviations of the rounding error of a difference of two scores of this many tokens, in nats."""
    return 2 * TOKEN_NOISE[precision] * math.sqrt(2 * num_tokens)
