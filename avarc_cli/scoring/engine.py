"""Scoring by plan: which pairs of image and class to score on which segments, in which batches.

The engine knows a model only through the LikelihoodModel interface. It scores no cell (image, candidate, order,
sample, segment) twice, unless the memory for KV caches is limited: the survivors of a stage are extended from their
caches.

What happens for the plan 6:10,10:3,10:1:3: one image, 100 classes, 10 segments that end at token 1, 5, 14, 30, 55, 91,
155, 255, 424 and 680, batches of at most 2048 tokens. Sample 1 has the same first 3 segments as the image (sample 0),
sample 2 differs from the first on.

    stage   sample  segments  pairs per batch      tokens per pair  KV cache after each batch
    6:10    0       1-6       20, 20, 20, 20, 20   91               segments 1-6 of the best 10 pairs so far
    10:3    0       7-10      1, 3, 3, 3           589              segments 1-3 of the best 3 pairs so far
    10:1:3  1       4-10      3                    666              nothing
            2       1-10      3                    680              nothing

A batch is divided evenly among its passes. Pairs that are not among the best are dropped after each of them. The 10
survivors of the first stage are left in 4 batches, the 3 of the second in 3, which are joined, because one pass takes 3
pairs of 680 tokens. The second stage keeps segments 1-3 because sample 1 starts from them, by a fork of each survivor's
cache; the image itself is not scored again. 19,028 tokens in all. On a CPU, a batch that begins from scratch is also
limited by the keys and values that it stores, which the example leaves out: a d16 in fp32 takes 10 pairs ten times.

With a model that scores tokens in any order, an image is a sequence of its own in each order, with a KV cache of its
own. Orders that a stage begins are scored from scratch; those that it continues are extended.

Where a stage has another precision than the one before, everything begins from scratch, with the model in that one.

Modules: request (what to score), log_prob_table (what has been scored, who is still in play), cache_policy (which keys
and values are kept), and this one (the order of the work).

Shapes: G images of a group, N candidates, O orders, S samples, P pairs, L tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.cache_policy import Batch, CachePolicy, shared_segments
from avarc_cli.scoring.drawn import summaries
from avarc_cli.scoring.log_prob_table import LogProbTable, Pairs, PendingTransfer
from avarc_cli.scoring.orders import positions
from avarc_cli.scoring.plan import Bool, Stage, Step
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import ImageScores, IntN, TokensN

# Pairs of one forward pass. PyTorch's attention kernels for CUDA have one block of a grid dimension per pair, and CUDA
# limits that dimension to 65,535 (CUDA C++ Programming Guide, technical specifications). Not tried on a GPU.
MAX_PAIRS = 1 << 14


InPrecision = Callable[[str], LikelihoodModel]
"""The model in a precision of this name."""


def score_group(
    model: LikelihoodModel,
    tokens_GSL: TokensN,
    request: ScoringRequest,
    order_GOL: IntN | None = None,
    in_precision: InPrecision | None = None,
) -> list[ImageScores]:
    """Score a group of images together.

    Args:
        model: in the run's precision.
        tokens_GSL: int64, or (G, S, L, Z) float32 of continuous tokens; sample 0 is the image, the others its smoothed
            samples, or other views of it.
        order_GOL: int64, as many orders of each image as the plan needs: element j is the position that is scored
            j-th. None for the order of the positions, the only one of a model with a fixed order.
        in_precision: called for stages that name a precision, with its name.
    Returns: one ImageScores per image, in order.
    Raises: AvarcError if the model returns log-probabilities that are not finite.
    """
    return _Scheduler(model, tokens_GSL, request, order_GOL, in_precision).run()


class _Sequences(NamedTuple):
    """The different sequences of a batch."""

    tokens_BL: Tensor
    sequence_P: Tensor
    """Row of each pair."""
    order_BL: Tensor | None


class _Inputs:
    """The token sequences and classes that pairs refer to by index."""

    def __init__(
        self, model: LikelihoodModel, tokens_GSL: TokensN, request: ScoringRequest, order_GOL: IntN | None
    ) -> None:
        unconditional = [model.unconditional] if request.score.needs_unconditional else []
        self.class_id = np.array([*unconditional, *request.candidates.tolist()], dtype=np.int64)
        self.adapter = model.adapter(self.class_id)
        model.prepare(self.class_id)
        self.tokens, self.order_GOL = tokens_GSL, order_GOL
        self.class_by_class = model.group_cache_bytes > 0

    def sequences(self, pairs: Pairs) -> _Sequences:
        """The different token sequences of these pairs, and the row of each pair in them."""
        images, samples = self.tokens.shape[:2]
        orders = 1 if self.order_GOL is None else self.order_GOL.shape[1]
        each_P = np.ravel_multi_index((pairs.image, pairs.sample, pairs.order), (images, samples, orders))
        each_B, sequence_P = np.unique(each_P, return_inverse=True)
        image, sample, order = np.unravel_index(each_B, (images, samples, orders))
        return _Sequences(
            torch.from_numpy(self.tokens[image, sample]),
            torch.from_numpy(sequence_P),
            None if self.order_GOL is None else torch.from_numpy(self.order_GOL[image, order]),
        )

    def classes(self, pairs: Pairs) -> Tensor:
        """Class id of each pair, (P,)."""
        return torch.from_numpy(self.class_id[pairs.column])

    def pairs_of_a_class(self, pairs: Pairs) -> int:
        """Most pairs of a class that share what it costs; at most 1 where they share nothing."""
        return int(np.unique(pairs.column, return_counts=True)[1].max(initial=0)) if self.class_by_class else 1

    def by_adapter(self, pairs: Pairs) -> Iterator[Batch]:
        """One batch, not begun, for each adapter: pairs in the order of image, order, column, sample.

        Class by class if images share what a class costs: in the order of column, image, order, sample.
        """
        keys = [pairs.sample, pairs.column, pairs.order, pairs.image]  # np.lexsort's, the last one first
        if self.class_by_class:
            keys = [pairs.sample, pairs.order, pairs.image, pairs.column]
        pairs = pairs.take(np.lexsort(keys))
        adapter_P = self.adapter[pairs.column]
        for adapter in np.unique(adapter_P):
            yield Batch(pairs.take(np.nonzero(adapter_P == adapter)[0]))


class _Scheduler:
    """Takes the pairs of one group through the stages of the plan, batch by batch."""

    def __init__(
        self,
        model: LikelihoodModel,
        tokens_GSL: TokensN,
        request: ScoringRequest,
        order_GOL: IntN | None,
        in_precision: InPrecision | None,
    ) -> None:
        images, samples = tokens_GSL.shape[:2]
        self.own_model, self.in_precision = model, in_precision
        self.model, self.request, self.ends = model, request, (0, *model.segment_ends)
        self.inputs = _Inputs(model, tokens_GSL, request, order_GOL)
        position_GOL = None if order_GOL is None else positions(order_GOL)
        self.table = LogProbTable(request, model.segment_ends, images, samples, position_GOL)
        self.shared_GOS = shared_segments(tokens_GSL, position_GOL, model.segment_ends) * request.reuse_prefix
        self.policy = CachePolicy(model.segment_ends, self.shared_GOS, request.max_cached_tokens)
        self.pending: list[Batch] = []
        """Batches that the current stage has not reached."""
        self.finished: list[Batch] = []
        """Batches that the current stage has scored, or does not score."""

    def run(self) -> list[ImageScores]:
        for step in self.request.plan.steps():
            started = time.perf_counter()
            if step.changes_precision:
                self.pending, self.finished = [], []
                self.table.forget_sums()
            self.model = self._model_of(step.stage)
            self._advance(step)
            self.table.close_stage(step.stage, time.perf_counter() - started)
            if not self.table.undecided_G.any():
                break
        self.model = self.own_model
        for segments in self.request.keep_estimates:
            self._estimate(Stage(segments, len(self.inputs.class_id), estimated=True), np.ones_like(self.table.alive))
            self.table.keep_estimates()
        return self.table.results()

    def _model_of(self, stage: Stage) -> LikelihoodModel:
        if stage.precision is None:
            return self.own_model
        assert self.in_precision is not None, "a stage names its precision, and there is no model of it"
        model = self.in_precision(stage.precision)
        model.prepare(self.inputs.class_id)
        return model

    def _advance(self, step: Step) -> None:
        """Score every surviving pair up to the last segment of the stage, in its orders and samples."""
        if not step.stage.segments:
            assert self.request.first_cut is not None, "the plan begins with a first cut, and there is none"
            self.table.enter_first_cut(self.request.first_cut.scores(summaries(self.model, self.inputs.tokens[:, 0])))
            return
        if step.stage.estimated:
            self._estimate(step.stage, self.table.alive & self.table.undecided_G[:, None])
            return
        self.pending, self.finished = self.finished, []
        self.pending = self._continue(step.stage)
        from_scratch = []
        while self.pending:
            from_scratch += self._score(self.pending.pop(0), step)
        in_play_GN = self.table.alive & self.table.undecided_G[:, None]
        for batch in self._begin([_pairs(in_play_GN, order, 0) for order in step.new_orders.tolist()]):
            from_scratch += self._score(batch, step)
        for batch in self._begin(from_scratch):
            self._score(batch, step)
        self.table.drain()

    def _score(self, batch: Batch, step: Step) -> list[Pairs]:
        """Score the batch, and of originals the samples that begin in this stage and share segments with them.

        Returns: pairs of the samples that share nothing, which are scored from scratch.
        """
        from_scratch = []
        for part in self._split(batch, step):
            self._extend(part, step)
            if part.is_original and step.stage.samples > step.samples_begun_O[part.pairs.order].clip(min=1).min():
                from_scratch.append(self._fork_samples(part, step))
            self._finish_batch(part, step)
        return from_scratch

    def _estimate(self, stage: Stage, wanted_GN: Bool) -> None:
        """Estimate these images and columns. What is cached of earlier stages stays as it is."""
        self.table.begin_estimates()
        draws = np.ndindex(stage.orders, stage.samples)
        for batch in self._begin([_pairs(wanted_GN, order, sample) for order, sample in draws]):
            at_once, pairs = self._pairs_per_pass(stage.estimate_cost(self.ends[1:])), batch.pairs
            for rows in _evenly(np.arange(len(pairs)), at_once):
                part = pairs.take(rows)
                tokens_BL, sequence_P, order_BL = self.inputs.sequences(part)
                log_prob_PL = self.model.block_parallel(
                    tokens_BL, sequence_P, self.inputs.classes(part), order_BL, revealed=self.ends[stage.segments]
                )
                transfer = PendingTransfer(part, 0, len(self.ends) - 1, log_prob_PL)
                self.table.enter_estimate(transfer, stage)

    def _begin(self, pairs: list[Pairs]) -> Iterator[Batch]:
        """Batches, not begun, of all these pairs."""
        if pairs:
            yield from self.inputs.by_adapter(Pairs.joined(pairs))

    def _continue(self, stage: Stage) -> list[Batch]:
        """What this stage scores of the batches before it: those that are alike joined, as far as one pass takes them.

        Dropped pairs leave batches of a few, and small matrices are multiplied slowly.
        """
        batches: list[Batch] = []
        alike: list[Batch] = []
        at_once = self._pairs_per_pass(self.ends[stage.segments]) if self.model.joins else 0
        while self.pending:
            batch = self._defer(self._survivors(self.pending.pop(0)), stage)
            if not len(batch.pairs):
                continue
            pairs = sum(len(each.pairs) for each in alike) + len(batch.pairs)
            if alike and (pairs > at_once or self._kind(batch) != self._kind(alike[0])):
                batches.append(Batch.joined(self.model, alike))
                alike = []
            alike.append(batch)
        return [*batches, Batch.joined(self.model, alike)] if alike else batches

    def _kind(self, batch: Batch) -> tuple[object, ...]:
        """Batches of one kind, none of them empty, can be joined."""
        adapter = self.inputs.adapter[batch.pairs.column[0]]
        return adapter, batch.scored, batch.cached, batch.state is None, batch.is_original

    def _defer(self, batch: Batch, stage: Stage) -> Batch:
        """The batch without orders and samples that this stage does not average; these wait for one that does."""
        later = (batch.pairs.sample >= stage.samples) | (batch.pairs.order >= stage.orders)
        if not later.any():
            return batch
        self.finished.append(batch.take(self.model, np.nonzero(later)[0]))
        return batch.take(self.model, np.nonzero(~later)[0])

    def _survivors(self, batch: Batch) -> Batch:
        in_play = self.table.in_play(batch.pairs)
        return batch if in_play.all() else batch.take(self.model, np.nonzero(in_play)[0])

    def _split(self, batch: Batch, step: Step) -> Iterator[Batch]:
        """The batch in parts that one forward pass takes to the stage's last segment; none if it is empty."""
        pairs, new = len(batch.pairs), max(0, self.ends[step.stage.segments] - self.ends[batch.scored])
        at_once = self._pairs_per_pass(new) if new else pairs
        kept = self.ends[self.policy.segments_to_keep(batch, step)] if pairs and not batch.scored else 0
        if kept and self.request.cached_tokens_per_batch is not None:
            of_a_class = self.inputs.pairs_of_a_class(batch.pairs)
            least = of_a_class if of_a_class <= at_once else 1
            at_once = min(at_once, max(least, self.request.cached_tokens_per_batch // kept))
        if 0 < pairs <= at_once:
            yield batch
            return
        for rows in self._parts(batch.pairs, at_once):
            yield batch.take(self.model, rows)

    def _parts(self, pairs: Pairs, at_once: int) -> list[IntN]:
        """The rows of each part, at most `at_once`: alike in size, or whole classes where images share what these cost.

        A class that has more rows is divided.
        """
        rows, parts, start = np.arange(len(pairs)), list[IntN](), 0
        if self.inputs.pairs_of_a_class(pairs) <= 1:
            return _evenly(rows, at_once)
        ends = [*(np.flatnonzero(np.diff(pairs.column)) + 1).tolist(), len(pairs)]
        for end, following in zip(ends, [*ends[1:], math.inf], strict=True):
            if following - start > at_once:  # the next class does not fit
                parts += _evenly(rows[start:end], at_once)
                start = end
        return parts

    def _pairs_per_pass(self, tokens: int) -> int:
        """Pairs of this many tokens each that one forward pass takes."""
        return min(MAX_PAIRS, max(1, self.request.tokens_per_batch // self.model.evaluated(tokens)))

    def _extend(self, batch: Batch, step: Step) -> None:
        """Score the batch up to the stage's last segment, unless it has been."""
        stop = step.stage.segments
        if batch.scored >= stop:
            return
        assert batch.cached == batch.scored, "the cache that this batch would be extended from was freed"
        if batch.state is None:
            tokens_BL, sequence_P, order_BL = self.inputs.sequences(batch.pairs)
            batch.state = self.model.begin(tokens_BL, sequence_P, self.inputs.classes(batch.pairs), order_BL)
        keep = self.policy.segments_to_keep(batch, step)
        log_prob_PT = self.model.extend(batch.state, stop, keep_cache_segments=keep)
        self.table.enqueue(PendingTransfer(batch.pairs, batch.scored, stop, log_prob_PT))
        batch.scored, batch.cached = stop, keep

    def _fork_samples(self, original: Batch, step: Step) -> Pairs:
        """Score the samples that begin in this stage and share their first segments with their image.

        Returns: pairs of the samples that share nothing, which are scored from scratch.
        """
        begun_P = step.samples_begun_O[original.pairs.order].clip(min=1)
        row, sample = np.nonzero(np.arange(step.stage.samples) >= begun_P[:, None])
        of_row = original.pairs.take(row)
        pairs = Pairs(of_row.image, of_row.column, of_row.order, sample)
        start_P = self._fork_points(original, pairs, step)
        if start_P.any():
            self.table.drain()
        for start in np.unique(start_P[start_P > 0]).tolist():
            which = np.nonzero(start_P == start)[0]
            at_once = self._pairs_per_pass(self.ends[max(start, step.stage.segments)])
            for part in _evenly(which, at_once):
                fork = self._fork(original, row[part], pairs.take(part), start, step)
                self._extend(fork, step)
                self._finish_batch(fork, step)
        return pairs.take(np.nonzero(start_P == 0)[0])

    def _fork_points(self, original: Batch, pairs: Pairs, step: Step) -> IntN:
        """After how many segments these samples of the original pairs start, (P,)."""
        shared_P = self.shared_GOS[pairs.image, pairs.order, pairs.sample]
        complete = (shared_P >= step.last_segments) & (original.scored >= step.last_segments)  # nothing left to score
        return np.where(complete, step.last_segments, np.minimum(shared_P, original.cached))

    def _fork(self, original: Batch, rows: IntN, pairs: Pairs, start: int, step: Step) -> Batch:
        """A batch of these pairs, which share the first `start` segments with these rows of the original batch."""
        self.table.copy_from_original(pairs, start)
        fork = Batch(pairs, scored=start)
        if step.last_segments > start:
            tokens_BL, sequence_P, order_BL = self.inputs.sequences(pairs)
            rows_P = torch.from_numpy(rows)
            fork.state = self.model.fork(original.state, rows_P, tokens_BL, sequence_P, start, order_BL)
            fork.cached = start
        return fork

    def _finish_batch(self, batch: Batch, step: Step) -> None:
        """Free the cache of what no later stage extends: the batch's own, and that of candidates dropped by now."""
        self.finished.append(batch)
        if not self.policy.needed_later(batch, step):
            batch.free_cache()
        self.table.drain(keep=1)  # a GPU works on the last batch while the host enters the one before
        if batch.cached:
            # A candidate that is behind `keep` others already stays behind. Dropping it now bounds the memory by the
            # survivors and one batch, however many candidates there are.
            self.table.drain()
            self.table.drop(step.stage)
            for i, each in enumerate(self.finished):  # one by one, so that only one of them is there twice
                self.finished[i] = self._survivors(each)
            self.policy.evict([*self.finished, *self.pending], step)


def _evenly(rows: IntN, at_once: int) -> list[IntN]:
    """The rows in as few parts as possible of at most `at_once`, alike in size: the largest part decides the memory."""
    return np.array_split(rows, -(-len(rows) // at_once)) if len(rows) else []


def _pairs(wanted_GN: Bool, order: int, sample: int) -> Pairs:
    """This sample of these images in this order, under these columns."""
    image, column = np.nonzero(wanted_GN)
    return Pairs(image, column, np.full_like(image, order), np.full_like(image, sample))
