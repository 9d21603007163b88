"""A cascade of two precisions: a cheap one drops candidates, and an exact one decides what the cheap one cannot.

The prediction is that of the whole plan in the exact precision, unless a difference of two scores that matters
(`rounding_noise.comparisons`) is wrong by more than the slack of its stage. For every stage k of the plan, let A_k be
the candidates that take part in it in the exact precision. They are not known, but lie between two sets that follow
from the cheap scores alone:

    possible   candidates that the cheap run has not dropped. It drops one only if `keep` sure candidates, or one and
               the margin, are ahead by more than the slack
    sure       candidates that survive in the exact precision: fewer than `keep` possible ones are ahead of them, or
               behind by less than the slack

By induction over the stages, sure <= A_k <= possible. Candidates that are possible but not sure displace none: if they
did, an exact survivor could be lost to one that the exact run has dropped long before.

The winner of the exact run is a possible survivor of the last stage. If that is one candidate, it is the prediction,
and no exact score was computed. Otherwise the exact precision scores these few on the last stage. If the best of them
is sure to take part in it, it is the prediction: the exact winner is among them, and no better. Else the A_k are found
out from the first stage on: only candidates that are possible but not sure are scored there in the exact precision.

Shapes: G images, S samples, O orders, L tokens, N candidates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import Bool, Plan, Stage
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import FloatN, ImageScores, IntN, Settled, StageScores, TokensN, summarize


@dataclass(frozen=True)
class Cascade:
    """How a plan is carried out in two precisions."""

    cheap: str
    """The precision that scores everything."""
    slacks: tuple[float, ...]
    """Nats, of each stage, that no difference of two scores of the cheap precision that matters is wrong by."""
    exact: str = "fp32"
    """The precision whose predictions are wanted."""

    def widened(self, plan: Plan) -> Plan:
        """The plan whose stages keep everything that may be a survivor in the exact precision."""
        return Plan(tuple(replace(stage, slack=s) for stage, s in zip(plan.stages, self.slacks, strict=True)))


def score_in_two_precisions(
    cheap: LikelihoodModel,
    exact: Callable[[], LikelihoodModel],
    tokens_GSL: TokensN,
    request: ScoringRequest,
    cascade: Cascade,
    order_GOL: IntN | None = None,
) -> list[ImageScores]:
    """As `engine.score_group` with the exact model, at the price of the cheap one.

    Args:
        exact: loads or returns the exact model; called only when an image needs it.
    Returns: one ImageScores per image. Those of single stages may be in the cheap precision, as they say.
    Raises: as `score_group`.
    """
    plan = cascade.widened(request.plan)
    scored = score_group(cheap, tokens_GSL, replace(request, plan=plan), order_GOL)
    settled = []
    for g, scores in enumerate(scored):
        stages = tuple(replace(stage, precision=cascade.cheap) for stage in scores.stages)
        if len(stages[-1].survivors) == 1:
            settled.append(replace(scores, stages=stages, settled=Settled(cascade.cheap, False, 0)))
            continue
        order_1OL = None if order_GOL is None else order_GOL[[g]]
        model = exact()
        model.prepare(request.candidates)  # all at once: in this image or another, most of them are needed
        image = _ExactScores(model, tokens_GSL[[g]], order_1OL, request, cascade.exact)
        settled.append(_Settling(replace(scores, stages=stages), plan, request, image).scores())
    return settled


class _ExactScores:
    """One image's scores in the exact precision."""

    def __init__(
        self,
        model: LikelihoodModel,
        tokens_1SL: TokensN,
        order_1OL: IntN | None,
        request: ScoringRequest,
        precision: str,
    ) -> None:
        self.model, self.tokens_1SL, self.order_1OL = model, tokens_1SL, order_1OL
        self.request, self.precision = request, precision
        self.tokens = 0
        """Token log-probabilities computed so far."""
        self.unconditional = math.nan
        """log p(x) on the last stage that was scored."""

    def score(self, stage: Stage, candidates: IntN) -> StageScores:
        """What the candidates at these positions get in a stage, without what a first cut adds; the best survives."""
        started = time.perf_counter()
        alone = replace(stage, keep=1, margin=math.inf, slack=0.0, cut_weight=0.0)
        request = replace(self.request.of(candidates), plan=Plan((alone,)), first_cut=None)
        (scores,) = score_group(self.model, self.tokens_1SL, request, self.order_1OL)
        self.tokens += scores.tokens_scored
        self.unconditional = scores.unconditional
        return replace(
            scores.stages[0],
            candidates=candidates,
            survivors=candidates[scores.stages[0].survivors],
            precision=self.precision,
            seconds=time.perf_counter() - started,
        )


class _Settling:
    """Finds the exact prediction of an image whose cheap scores leave several candidates."""

    def __init__(self, cheap: ImageScores, plan: Plan, request: ScoringRequest, exact: _ExactScores) -> None:
        """plan: widened, as the cheap scores were computed by."""
        self.cheap, self.plan, self.request, self.exact = cheap, plan, request, exact

    def scores(self) -> ImageScores:
        stages, last = self.cheap.stages, self.plan.stages[-1]
        final = self.exact.score(last, stages[-1].survivors)
        checked = not self._is_sure(final.survivors[0])
        if checked:
            stages = self._exact_stages()
            final = _of(final, stages[-1].survivors)
        return self._summary((*stages, final), survivors=checked)

    def _is_sure(self, candidate: int) -> bool:
        """Whether the candidate takes part in the last stage in the exact precision."""
        sure_N = np.ones(len(self.request.candidates), dtype=bool)
        for stage, record in zip(self.plan.stages[:-1], self.cheap.stages, strict=False):
            alive_N, score_N = self._dense(record)
            sure_N &= stage.sure(alive_N[None], score_N[None])[0]
        return bool(sure_N[candidate])

    def _exact_stages(self) -> tuple[StageScores, ...]:
        """The cheap stages with the candidates that take part in them in the exact precision; the last one keeps what
        may be the winner."""
        alive_N = np.ones(len(self.request.candidates), dtype=bool)
        stages = []
        for number, (stage, record) in enumerate(zip(self.plan.stages, self.cheap.stages, strict=True)):
            left_N = self._possible(stage, record, alive_N)
            if number + 1 < len(self.plan.stages):
                left_N = self._survivors(stage, record, alive_N)
            stages.append(replace(_of(record, np.nonzero(alive_N)[0]), survivors=np.nonzero(left_N)[0]))
            alive_N = left_N
        return tuple(stages)

    def _possible(self, stage: Stage, record: StageScores, alive_N: Bool) -> Bool:
        possible_1N: Bool = stage.survivors(alive_N[None], self._dense(record)[1][None], alive_N[None])
        return np.asarray(possible_1N[0])

    def _survivors(self, stage: Stage, record: StageScores, alive_N: Bool) -> Bool:
        """The exact survivors of a stage, of the candidates that take part in it."""
        score_1N = self._dense(record)[1][None]
        if not stage.slack:  # the same in all precisions
            return np.asarray(stage.survivors(alive_N[None], score_1N)[0])
        by_rank, by_margin = replace(stage, margin=math.inf), replace(stage, keep=len(alive_N))
        possible_N, sure_N = self._possible(by_rank, record, alive_N), by_rank.sure(alive_N[None], score_1N)[0]
        within_N, sure_within_N = self._possible(by_margin, record, alive_N), by_margin.sure(alive_N[None], score_1N)[0]
        open_N, places = possible_N & ~sure_N, stage.keep - int(sure_N.sum())
        if int(open_N.sum()) <= places:
            sure_N, open_N = possible_N, np.zeros_like(open_N)
        open_within_N = within_N & ~sure_within_N
        first_N = alive_N & (score_1N[0] >= score_1N[0][alive_N].max() - stage.slack)  # those that may be the best
        needed_N = open_N | (open_within_N | first_N if open_within_N.any() else False)
        exact_N = self._exact(stage, np.nonzero(needed_N)[0])
        ranked = np.nonzero(open_N)[0]
        sure_N = sure_N.copy()
        sure_N[ranked[np.argsort(-exact_N[ranked], kind="stable")[:places]]] = True
        if open_within_N.any():
            sure_within_N |= open_within_N & (exact_N >= exact_N[first_N].max() - stage.margin)
        left: Bool = alive_N & sure_N & sure_within_N
        return left

    def _exact(self, stage: Stage, candidates: IntN) -> FloatN:
        """Exact scores of a stage at these positions, what a first cut adds included; nan elsewhere."""
        scores_N = np.full(len(self.request.candidates), np.nan)
        if len(candidates):
            scores_N[candidates] = self.exact.score(stage, candidates).scores
        if stage.cut_weight:
            scores_N += stage.cut_weight * self.cheap.stages[0].log_likelihood  # of the first cut, for every candidate
        return scores_N

    def _dense(self, record: StageScores) -> tuple[Bool, FloatN]:
        """Which candidates took part in a stage, and their scores; nan for the others."""
        scores_N = np.full(len(self.request.candidates), np.nan)
        scores_N[record.candidates] = record.scores
        return ~np.isnan(scores_N), scores_N

    def _summary(self, stages: tuple[StageScores, ...], *, survivors: bool) -> ImageScores:
        log_prior_N = np.zeros(len(self.request.candidates))
        for record in stages:
            log_prior_N[record.candidates] = self.request.prior(record.tokens)[record.candidates]
        tokens = self.cheap.tokens_scored + self.exact.tokens
        summary = summarize(
            stages,
            len(self.request.candidates),
            log_prior_N=log_prior_N,
            tokens_scored=tokens,
            temperature=self.request.temperature,
            unconditional=self.exact.unconditional,
        )
        return replace(summary, settled=Settled(self.exact.precision, survivors, self.exact.tokens))


def _of(record: StageScores, candidates: IntN) -> StageScores:
    """The record of these candidates only, of those that it has; the best of them survives."""
    kept = np.isin(record.candidates, candidates)
    positions, scores = record.candidates[kept], record.scores[kept]
    return replace(
        record,
        candidates=positions,
        scores=scores,
        log_likelihood=record.log_likelihood[kept],
        survivors=positions[[np.argmax(scores)]],
    )
