"""How the scores of several orders become one score.

Shapes: N candidates, O orders; leading axes (...) are images. All in nats, float64.
"""

from __future__ import annotations

import math

import numpy as np

from avarc_cli.errors import UsageError
from avarc_cli.scoring.plan import Plan
from avarc_cli.scoring.scores import FloatN

MEAN, POSTERIOR, LOG_MEAN_EXP = RULES = ("mean", "posterior", "log-mean-exp")


def check_rule(rule: str, *, bound: bool = False) -> None:
    """Raises: UsageError for an unknown rule, and for any but the mean where the orders are draws of a bound."""
    if rule not in RULES:
        raise UsageError(f"no rule '{rule}' to combine orders", f"there are {', '.join(RULES)}")
    if bound and rule != MEAN:
        raise UsageError(f"--combine {rule} does not go with --bound", "a bound is the mean of its draws")


def check_prunes(rule: str, plan: Plan) -> None:
    """Raises: UsageError for a plan that drops candidates on partial sums, unless the rule allows it.

    The mean over orders is a sum over tokens, of which a part is known early. The other rules are functions of whole
    log-likelihoods: a part of them tells nothing about the order of the candidates in the end.
    """
    if rule != MEAN and not plan.single_stage:
        raise UsageError(
            f"plan '{plan}' drops candidates on a part of their tokens",
            f"with --combine {rule}, scores of parts do not add up to the score of the whole",
            "use --plan exhaustive, or --combine mean",
        )


def combine(rule: str, scores_NO: FloatN) -> FloatN:
    """One score of each candidate, (..., N), from its scores in each order, (..., N, O); nan where one is missing.

    "mean": the mean log-likelihood, a lower bound on the log-likelihood of the mixture of the orders (Jensen).
    "log-mean-exp": that log-likelihood itself.
    "posterior": log of the mean, over orders, of the posterior among all candidates; nan until all are scored.
    """
    if rule == MEAN or scores_NO.shape[-1] == 1:
        mean_N: FloatN = scores_NO.mean(-1)
        return mean_N
    log_count = math.log(scores_NO.shape[-1])
    if rule == LOG_MEAN_EXP:
        return _log_sum_exp(scores_NO) - log_count
    log_evidence_O = _log_sum_exp(np.swapaxes(scores_NO, -1, -2))  # over candidates
    return _log_sum_exp(scores_NO - log_evidence_O[..., None, :]) - log_count


def combine_log_p(rule: str, log_p_NO: FloatN) -> FloatN:
    """log p(x | y) as the rule understands it, (..., N), from that in each order, (..., N, O)."""
    return combine(LOG_MEAN_EXP if rule == LOG_MEAN_EXP else MEAN, log_p_NO)


def _log_sum_exp(values: FloatN) -> FloatN:
    """Over the last axis; nan where one is."""
    top = values.max(-1, keepdims=True)
    total: FloatN = np.log(np.exp(values - top).sum(-1)) + top[..., 0]
    return total
