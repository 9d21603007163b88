"""Scoring by plan: which (image, candidate, sample, segment) cells to compute, in which batches.

The engine knows a model only through the LikelihoodModel interface, and never computes a cell twice: what survives a
stage goes on from its kept prefix. Shapes: G images of a group, N candidates, S samples, K segments, P pairs, L tokens.
"""

from __future__ import annotations

import math
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
from avarc_cli.scoring.scores import FloatN, ImageScores, ScoreFunction, StageScores, summarise

Int = npt.NDArray[np.int64]
MAX_IMAGES = 256  # of a group: what a kill can lose
MAX_PAIRS = 1 << 14  # of a forward pass: attention kernels count pairs times heads in limited grids
LEAST_SHARED = 1 / 64  # of the tokens: less in common with the image is not worth a batch of its own


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to score every image on.

    candidates: class ids (N,); log_prior: (N,) nats, added to every score; score: the score function;
    offset_per_token: (N,) nats, added to a score for every token it counts; None adds nothing;
    tokens_per_batch: tokens of all pairs of one forward pass; prefix_tokens: the most whose keys and values are held
    between two passes, None for no limit; temperature: of the posterior;
    keep_tokens: return token log-probabilities; keep_segments: return their sums over each segment of each sample.
    """

    candidates: Int
    plan: Plan
    score: ScoreFunction
    log_prior: FloatN
    tokens_per_batch: int
    offset_per_token: FloatN | None = None
    prefix_tokens: int | None = None
    temperature: float = 1.0
    keep_tokens: bool = False
    keep_segments: bool = False

    @property
    def columns(self) -> int:
        """Candidates, and the unconditional class where the score needs it."""
        return len(self.candidates) + self.score.needs_unconditional

    def prior(self, tokens: int) -> FloatN:
        """What is added to a score on so many tokens, (N,) nats."""
        return self.log_prior if self.offset_per_token is None else self.log_prior + self.offset_per_token * tokens

    def tokens_per_image(self, model: LikelihoodModel) -> int:
        """Token log-probabilities that scoring one image takes; an estimate where margins decide."""
        ends = model.segment_ends
        unconditional = self.plan.tokens(1, ends) if self.score.needs_unconditional else 0
        return self.plan.tokens(len(self.candidates), ends) + unconditional

    def kept_tokens(self, model: LikelihoodModel) -> int:
        """The most tokens of one image whose keys and values are kept between two stages, on average over images."""
        most, ends = 0.0, model.segment_ends
        for number, stage in enumerate(self.plan.stages):
            columns = stage.goes_on + self.score.needs_unconditional
            if self.plan.needs_prefix(number):
                most = max(most, columns * stage.samples * ends[stage.segments - 1])
            elif self.plan.samples_grow(number) and stage.segments > 1:  # at most so many are shared with neighbours
                most = max(most, columns * ends[stage.segments - 2])
        return math.ceil(most)

    def images_per_group(self, model: LikelihoodModel) -> int:
        """Images whose first stage fills one forward pass, and whose kept prefixes need no more memory than that."""
        first = self.plan.stages[0]
        columns = self._columns_of_one_adapter(model)
        scored = columns * first.samples * model.segment_ends[first.segments - 1]
        kept = self.kept_tokens(model) * model.bytes_per_token(kept=True) // model.bytes_per_token(kept=False)
        return max(1, min(MAX_IMAGES, self.tokens_per_batch // max(scored, kept)))

    def _columns_of_one_adapter(self, model: LikelihoodModel) -> int:
        """Those of the lowest adapter: classes added with adapters of their own leave the groups as they were."""
        adapter_N = adapters(model, self.candidates)
        return int((adapter_N == adapter_N.min()).sum()) + self.score.needs_unconditional


@dataclass
class _Track:
    """Pairs that stand at the same segment, with the model's state once they have begun.

    done: segments scored; kept: segments whose keys and values the state holds.
    """

    image: Int
    candidate: Int
    sample: Int
    done: int = 0
    kept: int = 0
    state: Any = None

    def take(self, model: LikelihoodModel, rows: Int) -> _Track:
        state = None if self.state is None else model.select(self.state, torch.from_numpy(rows))
        return _Track(self.image[rows], self.candidate[rows], self.sample[rows], self.done, self.kept, state)

    @property
    def clean(self) -> bool:
        """Whether these are the images' own tokens; no track mixes them with neighbours."""
        return bool(self.sample[0] == 0)

    def let_go(self) -> None:
        """Give up keys and values."""
        self.state, self.kept = None, 0


class _Unread:
    """The log-probabilities of a track's last segments, on their way from the device."""

    def __init__(self, track: _Track, stop: int, log_prob_PT: torch.Tensor) -> None:
        self.pairs = track.image, track.candidate, track.sample
        self.start, self.stop = track.done, stop
        self._host_PT, self._arrival = log_prob_PT.to("cpu", non_blocking=True), None
        if log_prob_PT.is_cuda:
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(log_prob_PT.device))

    def wait(self) -> torch.Tensor:
        """(P, T) float32 on the host."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._host_PT


def adapters(model: LikelihoodModel, class_id_N: Int) -> Int:
    """The adapter that each class is scored with (N,); 0 is the model itself, and all there is without adapters."""
    adapter = getattr(model, "adapter", np.zeros_like)
    adapter_N: Int = np.asarray(adapter(class_id_N), dtype=np.int64)
    return adapter_N


def shared_segments(tokens_GSL: Int, segment_ends: tuple[int, ...]) -> Int:
    """How many of its first segments each sample has in common with sample 0, (G, S); 0 where it is not worth it."""
    same_GSL = (tokens_GSL == tokens_GSL[:, :1]).cumprod(-1)
    ends = np.array([0, *segment_ends])
    shared_GS: Int = same_GSL[..., ends[1:] - 1].sum(-1)
    return np.where(ends[shared_GS] < LEAST_SHARED * ends[-1], 0, shared_GS)


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
    nobody's score is known without it. An image with one candidate left is decided, and leaves the group. A neighbour
    whose first segments are the image's own goes on from the image's keys and values of those.
    """

    def __init__(self, model: LikelihoodModel, tokens_GSL: Int, request: Request) -> None:
        self.model, self.request = model, request
        self.tokens = torch.from_numpy(tokens_GSL)
        images, samples, length = tokens_GSL.shape
        self.pinned = int(request.score.needs_unconditional)
        ids = [*([model.unconditional] if self.pinned else []), *request.candidates.tolist()]
        self.class_id = np.array(ids, dtype=np.int64)
        self.adapter = adapters(model, self.class_id)
        self.sums = np.full((images, len(ids), samples, len(model.segment_ends)), np.nan)
        self.alive = np.ones((images, len(ids)), dtype=bool)
        self.undecided = np.ones(images, dtype=bool)
        self.scored = np.zeros(images, dtype=np.int64)
        self.token_log_prob = np.zeros((images, len(ids), length), np.float32) if request.keep_tokens else None
        self.shared_GS = shared_segments(tokens_GSL, model.segment_ends)
        self.tracks: list[_Track] = []
        self.unread: list[_Unread] = []
        self.samples_begun = 0

    def run(self) -> list[ImageScores]:
        history: list[list[StageScores]] = [[] for _ in self.alive]
        for number, stage in enumerate(self.request.plan.stages):
            started = time.perf_counter()
            before = self.alive.copy()
            self._advance(number)
            log_p_GN, scores_GN = self._scores(stage)
            self._drop(stage, scores_GN)
            taking_part = np.nonzero(self.undecided)[0]
            seconds = (time.perf_counter() - started) / len(taking_part)
            for g in taking_part:
                took_part = np.nonzero(before[g, self.pinned :])[0]
                history[g].append(
                    StageScores(
                        segments=stage.segments,
                        candidates=took_part,
                        scores=scores_GN[g, took_part],
                        log_likelihood=log_p_GN[g, took_part],
                        survivors=np.nonzero(self.alive[g, self.pinned :])[0],
                        seconds=seconds,
                    )
                )
            self.undecided = self.alive[:, self.pinned :].sum(1) > 1
            if not self.undecided.any():
                break
        return [self._summary(g, tuple(stages)) for g, stages in enumerate(history)]

    def _advance(self, number: int) -> None:
        """Bring every surviving pair to the last segment of stage `number`, with the samples that are new in it."""
        stage = self.request.plan.stages[number]
        if self.samples_begun == 0:
            self._begin_images()
        new = np.arange(self.samples_begun, stage.samples)
        tracks, self.tracks = [self._survivors(track) for track in self.tracks], []
        apart = [np.empty((0, 3), np.int64)]
        for track in tracks:
            if not len(track.image):
                continue
            if track.sample[0] >= stage.samples:
                self.tracks.append(track)
                continue
            for chunk in self._chunks(track, stage):
                self._extend(chunk, number)
                forks, rest = self._fork(chunk, number, new)
                apart.append(rest)
                parts = [part for fork in forks for part in self._chunks(fork, stage)]
                for part in parts:
                    self._extend(part, number)
                self._settle([chunk, *parts], number)
        for track in self._by_adapter(np.concatenate(apart)):
            for chunk in self._chunks(track, stage):
                self._extend(chunk, number)
                self._settle([chunk], number)
        self._read()
        self.samples_begun = max(stage.samples, self.samples_begun)

    def _begin_images(self) -> None:
        """Every candidate with the image's own tokens; the neighbours come after, since they may go on from it."""
        images, columns = self.alive.shape
        image, candidate = (a.flatten() for a in np.indices((images, columns)))
        self.tracks = list(self._by_adapter(np.stack([image, candidate, np.zeros_like(image)], 1)))
        self.samples_begun = 1

    def _by_adapter(self, pairs_P3: Int) -> Iterator[_Track]:
        """A track to each adapter that these pairs (image, candidate, sample) have, in order."""
        pairs_P3 = pairs_P3[np.lexsort(pairs_P3.T[::-1])]
        adapter_P = self.adapter[pairs_P3[:, 1]]
        for adapter in np.unique(adapter_P):
            yield _Track(*pairs_P3[adapter_P == adapter].T)

    def _fork(self, track: _Track, number: int, new: Int) -> tuple[list[_Track], Int]:
        """New samples of a track's pairs: those that go on from segments they share with the image, and the rest."""
        row = np.arange(len(track.image) if track.clean else 0).repeat(len(new))
        pairs_P3 = np.stack([track.image[row], track.candidate[row], np.resize(new, len(row))], 1)
        shared = self.shared_GS[pairs_P3[:, 0], pairs_P3[:, 2]]
        goes_on = self.request.plan.needs_prefix(number)
        settled = (shared >= track.done) & (not goes_on)  # a score like the image's, and nothing left to do
        shared = np.where(settled, track.done, np.minimum(shared, track.kept))
        forks = []
        if shared.any():
            self._read()
        for segments in np.unique(shared[shared > 0]).tolist():
            here = shared == segments
            image, candidate, sample = pairs_P3[here].T
            fork = _Track(image, candidate, sample, done=segments)
            self.sums[image, candidate, sample, :segments] = self.sums[image, candidate, 0, :segments]
            if segments < track.done or goes_on:
                fork.state = self.model.fork(
                    track.state, torch.from_numpy(row[here]), *self._sequences(fork), stop=segments
                )
                fork.kept = segments
            forks.append(fork)
        return forks, pairs_P3[shared == 0]

    def _settle(self, tracks: list[_Track], number: int) -> None:
        """Keep of what was just scored only what later stages go on from."""
        plan = self.request.plan
        for track in tracks:
            if not plan.needs_prefix(number) and not (plan.samples_grow(number) and track.clean):
                track.let_go()
        self.tracks += tracks
        self._read(but=1)  # a GPU works on the last batch while the host takes in the one before and begins the next
        if any(track.kept for track in tracks):
            self._read()
            # Who is behind `keep` others already cannot come back, so its prefix need not be held: memory is
            # bounded by the survivors plus one batch, however many candidates there are.
            self._drop(plan.stages[number], self._scores(plan.stages[number])[1])
            self.tracks = [self._survivors(track) for track in self.tracks]
            self._give_up_prefixes(number)

    def _give_up_prefixes(self, number: int) -> None:
        """Let go of the largest prefixes until the rest fits; their pairs begin anew: work done twice."""
        limit = self.request.prefix_tokens
        while limit is not None and sum(self._held(t) for t in self.tracks) > limit:
            largest = max(self.tracks, key=self._held)
            largest.let_go()
            if self.request.plan.needs_prefix(number):
                largest.done = 0

    def _held(self, track: _Track) -> int:
        return len(track.image) * self.model.segment_ends[track.kept - 1] if track.kept else 0

    def _keep(self, track: _Track, number: int) -> int:
        """Segments of the track whose keys and values will be needed after stage `number` has scored them."""
        plan = self.request.plan
        if plan.needs_prefix(number):
            return plan.stages[number].segments
        if not track.clean:
            return 0
        shared = self.shared_GS[track.image, self.samples_begun : plan.samples]
        return int(shared[shared < plan.stages[number].segments].max(initial=0))

    def _survivors(self, track: _Track) -> _Track:
        alive = self.alive[track.image, track.candidate] & self.undecided[track.image]
        return track if alive.all() else track.take(self.model, np.nonzero(alive)[0])

    def _chunks(self, track: _Track, stage: Stage) -> Iterator[_Track]:
        """The track in parts that one forward pass can take to the stage's last segment."""
        ends = self.model.segment_ends
        new = ends[stage.segments - 1] - (ends[track.done - 1] if track.done else 0)
        pairs = min(MAX_PAIRS, max(1, self.request.tokens_per_batch // max(1, new)))
        if 0 < len(track.image) <= pairs or new <= 0:
            yield track
            return
        for start in range(0, len(track.image), pairs):
            yield track.take(self.model, np.arange(start, min(start + pairs, len(track.image))))

    def _sequences(self, track: _Track) -> tuple[torch.Tensor, torch.Tensor]:
        """The token sequences that a track's pairs have (B, L), and which of them each pair has (P,)."""
        samples = self.tokens.shape[1]
        sequences, sequence_P = np.unique(track.image * samples + track.sample, return_inverse=True)
        return self.tokens.flatten(0, 1)[torch.from_numpy(sequences)], torch.from_numpy(sequence_P)

    def _extend(self, track: _Track, number: int) -> None:
        """Score the track up to the last segment of stage `number`, if it has not come so far."""
        ends, stop = self.model.segment_ends, self.request.plan.stages[number].segments
        if track.done >= stop:
            return
        if track.state is None:
            class_id_P = torch.from_numpy(self.class_id[track.candidate])
            track.state = self.model.begin(*self._sequences(track), class_id_P)
        keep = self._keep(track, number)
        self.unread.append(_Unread(track, stop, self.model.extend(track.state, stop, keep=keep)))
        np.add.at(self.scored, track.image, ends[stop - 1] - (ends[track.done - 1] if track.done else 0))
        track.done, track.kept = stop, keep

    def _read(self, but: int = 0) -> None:
        """Take in what was scored, but for the last `but` batches."""
        ends = (0, *self.model.segment_ends)
        while len(self.unread) > but:
            batch = self.unread.pop(0)
            log_prob_PT = batch.wait()
            if not bool(log_prob_PT.isfinite().all()):
                raise AvarcError(
                    "the model gave a log-probability that is not a number",
                    "low precisions overflow in large models",
                    "use --precision bf16 or fp32",
                )
            image, candidate, sample = batch.pairs
            start = ends[batch.start]
            for k in range(batch.start, batch.stop):
                columns = log_prob_PT[:, ends[k] - start : ends[k + 1] - start]
                self.sums[image, candidate, sample, k] = columns.double().sum(1).numpy()
            if self.token_log_prob is not None and sample[0] == 0:
                self.token_log_prob[image, candidate, start : ends[batch.stop]] = log_prob_PT

    def _scores(self, stage: Stage) -> tuple[FloatN, FloatN]:
        """log p(x|y), and the score with the prior, of every candidate (G, N); nan where a cell is missing."""
        log_p = self.sums[:, :, : stage.samples, : stage.segments].sum(-1).mean(-1)
        unconditional_G = log_p[:, 0] if self.pinned else np.full(len(log_p), np.nan)
        log_p_GN = log_p[:, self.pinned :]
        rows = [self.request.score.formula(row, x) for row, x in zip(log_p_GN, unconditional_G, strict=True)]
        return log_p_GN, np.stack(rows) + self.request.prior(self.model.segment_ends[stage.segments - 1])

    def _prior(self, stages: tuple[StageScores, ...]) -> FloatN:
        """What was added to each candidate's last score, (N,)."""
        prior_N = np.zeros(len(self.request.candidates))
        for took, stage in zip(stages, self.request.plan.stages, strict=False):
            added_N = self.request.prior(self.model.segment_ends[stage.segments - 1])
            prior_N[took.candidates] = added_N[took.candidates]
        return prior_N

    def _drop(self, stage: Stage, scores_GN: FloatN) -> None:
        """Drop whom the stage's rule drops; not yet scored candidates stay."""
        self.alive[:, self.pinned :] = stage.survivors(self.alive[:, self.pinned :], scores_GN)

    def _summary(self, g: int, stages: tuple[StageScores, ...]) -> ImageScores:
        last = self.request.plan.stages[len(stages) - 1]
        unconditional = self.sums[g, 0, : last.samples, : last.segments].sum(-1).mean() if self.pinned else np.nan
        return summarise(
            stages,
            len(self.request.candidates),
            log_prior_N=self._prior(stages),
            tokens_scored=int(self.scored[g]),
            temperature=self.request.temperature,
            unconditional=float(unconditional),
            token_log_prob=None if self.token_log_prob is None else self.token_log_prob[g, self.pinned :],
            segment_log_prob=self.sums[g, self.pinned :].copy() if self.request.keep_segments else None,
        )
