"""What to score every image on, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.combining import MEAN
from avarc_cli.scoring.first_cut import FirstCut
from avarc_cli.scoring.plan import Plan
from avarc_cli.scoring.scores import FloatN, IntN, ScoreFunction

# Images scored together. Results are written after each group, so this is the most that an interruption can lose. Large
# batches of small models could take more; not measured.
MAX_IMAGES = 256
# Images of a group that share the work of each class: of a RAR's operations, a third depends on the class alone, so 4 %
# of them are left to each of 8 images.
SHARING_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class ScoringRequest:
    """What to score every image on. N candidates."""

    candidates: IntN
    """Class ids, (N,)."""
    plan: Plan
    """Which candidates survive when."""
    score: ScoreFunction
    """What candidates are ranked by."""
    log_prior: FloatN
    """Nats added to every score of a candidate, (N,)."""
    tokens_per_batch: int
    """Tokens of all pairs of one forward pass; one pair is scored even if it has more."""
    cached_tokens_per_batch: int | None = None
    """Most tokens whose keys and values a batch that begins from scratch stores; even if they are more, those of one
    pair or, where images share what a class costs, of one class that a pass takes. None for no limit."""
    offset_per_token: FloatN | None = None
    """Nats added to a candidate's score for every token that it is scored on, (N,)."""
    max_cached_tokens: int | None = None
    """Tokens in the KV caches of all pairs between two forward passes; None for no limit."""
    temperature: float = 1.0
    """Of the posterior."""
    combine: str = MEAN
    """How the scores of several orders become one (`combining`)."""
    reuse_prefix: bool = True
    """Let samples start from the KV cache of their image where their first segments are the same. The batches
    then depend on the tokens."""
    first_cut: FirstCut | None = None
    """What a plan that begins with a first cut needs."""
    keep_tokens: bool = False
    """Return token log-probabilities."""
    keep_segments: bool = False
    """Return the sums of token log-probabilities over each segment of each order and sample."""
    keep_estimates: tuple[int, ...] = ()
    """Also estimate every candidate from this many segments, in the first order, and return that."""

    @property
    def columns(self) -> int:
        """Candidates, plus the unconditional class if the score needs it."""
        return len(self.candidates) + self.score.needs_unconditional

    def prior(self, tokens: int) -> FloatN:
        """What is added to a score on this many tokens, (N,) nats."""
        return self.log_prior if self.offset_per_token is None else self.log_prior + self.offset_per_token * tokens

    def of(self, positions: IntN) -> ScoringRequest:
        """The request for the candidates at these positions only."""
        offset = self.offset_per_token
        return replace(
            self,
            candidates=self.candidates[positions],
            log_prior=self.log_prior[positions],
            offset_per_token=None if offset is None else offset[positions],
        )

    def halved(self) -> ScoringRequest:
        """The same with batches of half the size."""
        cached = self.cached_tokens_per_batch
        return replace(
            self,
            tokens_per_batch=self.tokens_per_batch // 2,
            cached_tokens_per_batch=None if cached is None else cached // 2,
        )

    def tokens_per_image(self, model: LikelihoodModel) -> int:
        """Tokens scored per image; an estimate if margins decide who survives."""
        ends = model.segment_ends
        unconditional = self.plan.tokens(1, ends) if self.score.needs_unconditional else 0
        return self.plan.tokens(len(self.candidates), ends) + unconditional

    def cached_tokens(self, model: LikelihoodModel) -> int:
        """Largest expected number of cached tokens per image between any two stages."""
        most, ends = 0.0, model.segment_ends
        for step in self.plan.steps():
            stage = step.stage
            if not stage.segments:
                continue
            columns = stage.expected_survivors + self.score.needs_unconditional
            if step.segments_grow:
                most = max(most, columns * stage.samples * stage.orders * ends[stage.segments - 1])
            elif step.samples_grow and stage.segments > 1:  # the most that new samples can reuse
                most = max(most, columns * stage.orders * ends[stage.segments - 2])
        return math.ceil(most)

    def images_per_group(self, model: LikelihoodModel) -> int:
        """Images whose first stage has the tokens of one batch, and whose KV caches take no more memory than it does.

        More of a model whose images share work (`LikelihoodModel.group_cache_bytes`).
        """
        cut, first = self.plan.first_cut, self.plan.stages[0]
        columns = self._columns_of_first_adapter(model)
        if cut is not None:
            first, columns = self.plan.stages[1], math.ceil(cut.expected_survivors) + self.score.needs_unconditional
        evaluated = model.evaluated(model.segment_ends[first.segments - 1])
        scored = columns * first.samples * first.orders * evaluated
        per_token = model.bytes_per_token(cached=True)
        cached = self.cached_tokens(model) * per_token
        images = self.tokens_per_batch // max(scored, cached // model.bytes_per_token(cached=False), 1)
        if budget := model.group_cache_bytes:
            if self.max_cached_tokens is not None:  # leaves room for the pairs of a batch that do not survive
                budget = min(budget, self.max_cached_tokens * per_token // 2)
            images = max(images, min(SHARING_IMAGES, budget // max(cached, 1)))
        most = MAX_IMAGES // self.plan.orders  # the table of sums has a cell for each order
        return max(1, min(most, images))

    def _columns_of_first_adapter(self, model: LikelihoodModel) -> int:
        """Columns of the lowest adapter: added classes with adapters of their own do not change the groups."""
        adapter_N = model.adapter(self.candidates)
        return int((adapter_N == adapter_N.min()).sum()) + self.score.needs_unconditional
