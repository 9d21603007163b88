"""Scoring by plan: which (image, candidate, sample, segment) cells to compute, in which batches.

The engine knows a model only through the LikelihoodModel interface, and never computes a cell twice: what survives a
stage goes on from its kept prefix. Shapes: G images of a group, N candidates, S samples, K segments, P pairs, L tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avarc_cli.errors import AvarcError
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.plan import Plan, Stage
from avarc_cli.scoring.scores import FloatN, ImageScores, ScoreFunction, StageScores, rank, summarise

Int = npt.NDArray[np.int64]
MAX_IMAGES = 256  # of a group: what a kill can lose
MAX_PAIRS = 1 << 14  # of a forward pass: attention kernels count pairs times heads in limited grids


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to score every image on.

    candidates: class ids (N,); log_prior: (N,) nats, added to every score; score: the score function;
    tokens_per_batch: tokens of all pairs of one forward pass; keep_tokens: return token log-probabilities.
    """

    candidates: Int
    plan: Plan
    score: ScoreFunction
    log_prior: FloatN
    tokens_per_batch: int
    keep_tokens: bool = False

    @property
    def columns(self) -> int:
        """Candidates, and the unconditional class where the score needs it."""
        return len(self.candidates) + self.score.needs_unconditional

    def tokens_per_image(self, model: LikelihoodModel) -> int:
        """Token log-probabilities that scoring one image takes."""
        ends = model.segment_ends
        unconditional = self.plan.tokens(1, ends) if self.score.needs_unconditional else 0
        return self.plan.tokens(len(self.candidates), ends) + unconditional

    def kept_tokens(self, model: LikelihoodModel) -> int:
        """The most tokens of one image whose keys and values are kept between two stages."""
        stages = list(enumerate(self.plan.stages))
        kept = [
            model.segment_ends[s.segments - 1] * s.samples * (s.keep + self.score.needs_unconditional)
            for i, s in stages
            if self.plan.needs_prefix(i)
        ]
        return max(kept, default=0)

    def images_per_group(self, model: LikelihoodModel) -> int:
        """Images whose first stage fills one forward pass, and whose kept prefixes need no more memory than that."""
        first = self.plan.stages[0]
        scored = self.columns * first.samples * model.segment_ends[first.segments - 1]
        kept = self.kept_tokens(model) * model.bytes_per_token(kept=True) // model.bytes_per_token(kept=False)
        return max(1, min(MAX_IMAGES, self.tokens_per_batch // max(scored, kept)))


@dataclass
class _Track:
    """Pairs that stand at the same segment, with the model's state once they have begun."""

    image: Int
    candidate: Int
    sample: Int
    done: int = 0
    state: Any = None

    def take(self, model: LikelihoodModel, rows: Int) -> _Track:
        state = None if self.state is None else model.select(self.state, torch.from_numpy(rows))
        return _Track(self.image[rows], self.candidate[rows], self.sample[rows], self.done, state)


def score_group(model: LikelihoodModel, tokens_GSL: Int, request: Request) -> list[ImageScores]:
    """Score a group of images together.

    Args:
        tokens_GSL: int64; sample 0 is the image, the others its smoothing neighbours.
    Returns: one ImageScores an image, in order.
    """
    return _Group(model, tokens_GSL, request).run()


class _Group:
    """The cells of one group.

    The unconditional class, if needed, is a column before the candidates that no stage drops; it comes first because
    nobody's score is known without it.
    """

    def __init__(self, model: LikelihoodModel, tokens_GSL: Int, request: Request) -> None:
        self.model, self.request = model, request
        self.tokens = torch.from_numpy(tokens_GSL)
        images, samples, length = tokens_GSL.shape
        self.pinned = int(request.score.needs_unconditional)
        ids = [*([model.unconditional] if self.pinned else []), *request.candidates.tolist()]
        self.class_id = np.array(ids, dtype=np.int64)
        self.sums = np.full((images, len(ids), samples, len(model.segment_ends)), np.nan)
        self.alive = np.ones((images, len(ids)), dtype=bool)
        self.scored = np.zeros(images, dtype=np.int64)
        self.token_log_prob = np.zeros((images, len(ids), length), np.float32) if request.keep_tokens else None
        self.tracks: list[_Track] = []
        self.samples_begun = 0

    def run(self) -> list[ImageScores]:
        history: list[list[StageScores]] = [[] for _ in self.alive]
        for number, stage in enumerate(self.request.plan.stages):
            started = time.perf_counter()
            before = self.alive.copy()
            self._begin_samples(stage)
            self._advance(stage, keep_prefix=self.request.plan.needs_prefix(number))
            log_p_GN, scores_GN = self._scores(stage)
            self._drop(stage, scores_GN)
            seconds = (time.perf_counter() - started) / len(history)
            for g, stages in enumerate(history):
                took_part = np.nonzero(before[g, self.pinned :])[0]
                stages.append(
                    StageScores(
                        candidates=took_part,
                        scores=scores_GN[g, took_part],
                        log_likelihood=log_p_GN[g, took_part],
                        survivors=np.nonzero(self.alive[g, self.pinned :])[0],
                        seconds=seconds,
                    )
                )
        return [self._summary(g, tuple(stages)) for g, stages in enumerate(history)]

    def _begin_samples(self, stage: Stage) -> None:
        """Pairs of the survivors with the samples that no stage has looked at yet."""
        if stage.samples > self.samples_begun:
            new = np.arange(self.samples_begun, stage.samples)
            image, candidate = (a.repeat(len(new)) for a in np.nonzero(self.alive))
            self.tracks.append(_Track(image, candidate, np.tile(new, len(image) // len(new))))
            self.samples_begun = stage.samples

    def _advance(self, stage: Stage, *, keep_prefix: bool) -> None:
        """Bring every surviving pair to the stage's last segment."""
        tracks = [self._survivors(track) for track in self.tracks]
        waiting = [t for t in tracks if t.done < stage.segments and len(t.image) and t.sample[0] < stage.samples]
        self.tracks = [t for t in tracks if not any(t is w for w in waiting)]
        for track in waiting:
            for chunk in self._chunks(track, stage):
                self._extend(chunk, stage.segments, keep_prefix=keep_prefix)
                if keep_prefix:
                    # Who is behind `keep` others already cannot come back, so its prefix need not be held:
                    # memory is bounded by the survivors plus one batch, however many candidates there are.
                    self._drop(stage, self._scores(stage)[1])
                    self.tracks = [self._survivors(t) for t in [*self.tracks, chunk]]
                else:
                    chunk.state = None
                    self.tracks.append(chunk)

    def _survivors(self, track: _Track) -> _Track:
        alive = self.alive[track.image, track.candidate]
        return track if alive.all() else track.take(self.model, np.nonzero(alive)[0])

    def _chunks(self, track: _Track, stage: Stage) -> Iterator[_Track]:
        ends = self.model.segment_ends
        new = ends[stage.segments - 1] - (ends[track.done - 1] if track.done else 0)
        pairs = min(MAX_PAIRS, max(1, self.request.tokens_per_batch // new))
        if len(track.image) <= pairs:
            yield track
            return
        for start in range(0, len(track.image), pairs):
            yield track.take(self.model, np.arange(start, min(start + pairs, len(track.image))))

    def _extend(self, track: _Track, stop: int, *, keep_prefix: bool) -> None:
        ends, samples = self.model.segment_ends, self.tokens.shape[1]
        if track.state is None:
            sequences, sequence_P = np.unique(track.image * samples + track.sample, return_inverse=True)
            track.state = self.model.begin(
                self.tokens.flatten(0, 1)[torch.from_numpy(sequences)],
                torch.from_numpy(sequence_P),
                torch.from_numpy(self.class_id[track.candidate]),
            )
        log_prob_PT = self.model.extend(track.state, stop, keep_prefix=keep_prefix).cpu()
        if not bool(log_prob_PT.isfinite().all()):
            raise AvarcError(
                "the model gave a log-probability that is not a number",
                "low precisions overflow in large models",
                "use --precision bf16 or fp32",
            )
        start = ends[track.done - 1] if track.done else 0
        for k in range(track.done, stop):
            first = ends[k - 1] if k else 0
            columns = log_prob_PT[:, first - start : ends[k] - start]
            self.sums[track.image, track.candidate, track.sample, k] = columns.double().sum(1).numpy()
        if self.token_log_prob is not None:
            clean = track.sample == 0
            self.token_log_prob[track.image[clean], track.candidate[clean], start : ends[stop - 1]] = log_prob_PT[clean]
        np.add.at(self.scored, track.image, ends[stop - 1] - start)
        track.done = stop

    def _scores(self, stage: Stage) -> tuple[FloatN, FloatN]:
        """log p(x|y), and the score with the prior, of every candidate (G, N); nan where a cell is missing."""
        log_p = self.sums[:, :, : stage.samples, : stage.segments].sum(-1).mean(-1)
        unconditional_G = log_p[:, 0] if self.pinned else np.full(len(log_p), np.nan)
        log_p_GN = log_p[:, self.pinned :]
        rows = [self.request.score.formula(row, x) for row, x in zip(log_p_GN, unconditional_G, strict=True)]
        return log_p_GN, np.stack(rows) + self.request.log_prior

    def _drop(self, stage: Stage, scores_GN: FloatN) -> None:
        """Drop whoever has `keep` fully scored candidates before it; not yet scored ones stay."""
        for alive_N, scores_N in zip(self.alive[:, self.pinned :], scores_GN, strict=True):
            ready = np.nonzero(alive_N & ~np.isnan(scores_N))[0]
            alive_N[ready[rank(scores_N[ready])][stage.keep :]] = False

    def _summary(self, g: int, stages: tuple[StageScores, ...]) -> ImageScores:
        last = self.request.plan.stages[-1]
        unconditional = self.sums[g, 0, : last.samples, : last.segments].sum(-1).mean() if self.pinned else np.nan
        return summarise(
            stages,
            len(self.request.candidates),
            log_prior_N=self.request.log_prior,
            tokens_scored=int(self.scored[g]),
            unconditional=float(unconditional),
            token_log_prob=None if self.token_log_prob is None else self.token_log_prob[g, self.pinned :],
        )
