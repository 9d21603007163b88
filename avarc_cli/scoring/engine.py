"""Scoring by plan: which (image, candidate, sample, segment) cells to compute, in which batches.

The engine knows a model only through the LikelihoodModel interface, and computes no cell twice unless the memory for
prefixes is limited: what survives a stage goes on from its keys and values.

Shapes: G images of a group, N candidates, S samples, K segments, P pairs, L tokens.
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
    share: let neighbours go on from what they share with their image; off where batches must not depend on tokens;
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
    share: bool = True
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

    done: segments scored; held: of so many of them the state holds keys and values. A track that is to be extended
    holds all of them, or has not begun.
    """

    image: Int
    candidate: Int
    sample: Int
    done: int = 0
    held: int = 0
    state: Any = None

    def take(self, model: LikelihoodModel, rows: Int) -> _Track:
        state = None if self.state is None else model.select(self.state, torch.from_numpy(rows))
        return _Track(self.image[rows], self.candidate[rows], self.sample[rows], self.done, self.held, state)

    @property
    def clean(self) -> bool:
        """Whether these are the images' own tokens; no track mixes them with neighbours, and none is empty here."""
        return bool(self.sample[0] == 0)

    def let_go(self) -> None:
        """Give up keys and values."""
        self.state, self.held = None, 0


class _Unread:
    """The log-probabilities of a track's last segments, on their way from the device."""

    def __init__(self, track: _Track, stop: int, log_prob_PT: torch.Tensor) -> None:
        self.pairs = track.image, track.candidate, track.sample
        self.start, self.stop = track.done, stop
        self._host_PT, self._arrival = log_prob_PT.to("cpu", non_blocking=log_prob_PT.is_cuda), None
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
    whose first segments are the image's own goes on from the image's keys and values of those that are scored when it
    begins.
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
        self.shared_GS = shared_segments(tokens_GSL, model.segment_ends) * request.share
        self.tracks: list[_Track] = []
        self.waiting: list[_Track] = []  # tracks that the stage at hand has not come to
        self.unread: list[_Unread] = []
        self.samples_begun = 0

    def run(self) -> list[ImageScores]:
        history: list[list[StageScores]] = [[] for _ in self.alive]
        self._begin_images()
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
        new = np.arange(self.samples_begun, stage.samples)
        self.waiting, self.tracks = self.tracks, []
        from_scratch = []
        while self.waiting:
            track = self._aside(self._survivors(self.waiting.pop(0)), stage)
            for chunk in self._chunks(track, stage):
                self._extend(chunk, number)
                if len(new) and chunk.clean:
                    start, pairs_P3 = self._starts(chunk, number, new)
                    from_scratch.append(pairs_P3[start == 0])
                    for neighbours in self._fork(chunk, number, start, pairs_P3):
                        self._extend(neighbours, number)
                        self._settle(neighbours, number)
                self._settle(chunk, number)
        for track in self._by_adapter(np.concatenate(from_scratch)) if from_scratch else ():
            for chunk in self._chunks(track, stage):
                self._extend(chunk, number)
                self._settle(chunk, number)
        self._read()
        self.samples_begun = max(stage.samples, self.samples_begun)

    def _begin_images(self) -> None:
        """Every candidate with the image's own tokens; the neighbours come after, since they may go on from it."""
        image, candidate = (a.flatten() for a in np.indices(self.alive.shape))
        self.tracks = list(self._by_adapter(np.stack([image, candidate, np.zeros_like(image)], 1)))
        self.samples_begun = 1

    def _by_adapter(self, pairs_P3: Int) -> Iterator[_Track]:
        """A track to each adapter that these pairs (image, candidate, sample) have, in order."""
        pairs_P3 = pairs_P3[np.lexsort(pairs_P3.T[::-1])]
        adapter_P = self.adapter[pairs_P3[:, 1]]
        for adapter in np.unique(adapter_P):
            yield _Track(*pairs_P3[adapter_P == adapter].T)

    def _aside(self, track: _Track, stage: Stage) -> _Track:
        """The track without the samples that the stage does not look at; those wait for one that does."""
        later = track.sample >= stage.samples
        if not later.any():
            return track
        self.tracks.append(track.take(self.model, np.nonzero(later)[0]))
        return track.take(self.model, np.nonzero(~later)[0])

    def _starts(self, track: _Track, number: int, new: Int) -> tuple[Int, Int]:
        """After how many segments the new samples of a clean track's pairs start (P,), and these pairs (P, 3)."""
        last = max(stage.segments for stage in self.request.plan.stages[number:])
        row = np.arange(len(track.image)).repeat(len(new))
        pairs_P3 = np.stack([track.image[row], track.candidate[row], np.tile(new, len(track.image))], 1)
        shared = self.shared_GS[pairs_P3[:, 0], pairs_P3[:, 2]]
        known = (shared >= last) & (track.done >= last)
        return np.where(known, last, np.minimum(shared, track.held)), pairs_P3

    def _fork(self, track: _Track, number: int, start_P: Int, pairs_P3: Int) -> Iterator[_Track]:
        """Tracks of the pairs that start after what they share with the image, as many at once as a pass can take."""
        plan, ends = self.request.plan, self.model.segment_ends
        rows_to_a_pair = len(start_P) // len(track.image)
        if start_P.any():
            self._read()
        for start in np.unique(start_P[start_P > 0]).tolist():
            which = np.nonzero(start_P == start)[0]
            at_once = self._pairs(ends[max(start, plan.stages[number].segments) - 1])
            for part in np.split(which, range(at_once, len(which), at_once)):
                image, candidate, sample = pairs_P3[part].T
                fork = _Track(image, candidate, sample, done=start)
                self.sums[image, candidate, sample, :start] = self.sums[image, candidate, 0, :start]
                if any(stage.segments > start for stage in plan.stages[number:]):
                    row = torch.from_numpy(part // rows_to_a_pair)
                    fork.state = self.model.fork(track.state, row, *self._sequences(fork), stop=start)
                    fork.held = start
                yield fork

    def _settle(self, track: _Track, number: int) -> None:
        """Hold of what was just scored only what later stages go on from."""
        plan = self.request.plan
        self.tracks.append(track)
        if not plan.needs_prefix(number) and not (plan.samples_grow(number) and track.clean):
            track.let_go()
        self._read(but=1)  # a GPU works on the last batch while the host takes in the one before and begins the next
        if track.held:
            # Who is behind `keep` others already cannot come back, so its prefix need not be held: memory is
            # bounded by the survivors plus one batch, however many candidates there are.
            self._read()
            self._drop(plan.stages[number], self._scores(plan.stages[number])[1])
            self.tracks = [self._survivors(track) for track in self.tracks]
            self._give_up_prefixes(number)

    def _give_up_prefixes(self, number: int) -> None:
        """Let go of the largest prefixes until the rest fits; their pairs begin anew: work done twice."""
        limit = self.request.prefix_tokens
        tracks = [*self.tracks, *self.waiting]
        while limit is not None and sum(map(self._tokens_held, tracks)) > limit:
            largest = max(tracks, key=self._tokens_held)
            largest.let_go()
            if any(stage.segments > largest.done for stage in self.request.plan.stages[number:]):
                largest.done = 0

    def _tokens_held(self, track: _Track) -> int:
        return len(track.image) * self.model.segment_ends[track.held - 1] if track.held else 0

    def _hold(self, track: _Track, number: int) -> int:
        """Segments of the track whose keys and values will be needed after stage `number` has scored them."""
        plan = self.request.plan
        stop = plan.stages[number].segments
        if plan.needs_prefix(number):
            return stop
        if not track.clean:
            return 0
        shared = self.shared_GS[track.image, self.samples_begun : plan.samples]
        return int(shared[shared < stop].max(initial=0))

    def _survivors(self, track: _Track) -> _Track:
        alive = self.alive[track.image, track.candidate] & self.undecided[track.image]
        return track if alive.all() else track.take(self.model, np.nonzero(alive)[0])

    def _chunks(self, track: _Track, stage: Stage) -> Iterator[_Track]:
        """The track in parts that one forward pass can take to the stage's last segment; nothing of an empty one."""
        ends = (0, *self.model.segment_ends)
        new = max(0, ends[stage.segments] - ends[track.done])
        at_once = self._pairs(new) if new else len(track.image)
        if 0 < len(track.image) <= at_once:
            yield track
            return
        for start in range(0, len(track.image), at_once or 1):
            yield track.take(self.model, np.arange(start, min(start + at_once, len(track.image))))

    def _pairs(self, tokens: int) -> int:
        """How many pairs of so many tokens a forward pass takes."""
        return min(MAX_PAIRS, max(1, self.request.tokens_per_batch // tokens))

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
        assert track.held == track.done, "it goes on from what was let go"
        if track.state is None:
            class_id_P = torch.from_numpy(self.class_id[track.candidate])
            track.state = self.model.begin(*self._sequences(track), class_id_P)
        hold = self._hold(track, number)
        self.unread.append(_Unread(track, stop, self.model.extend(track.state, stop, hold=hold)))
        np.add.at(self.scored, track.image, ends[stop - 1] - (ends[track.done - 1] if track.done else 0))
        track.done, track.held = stop, hold

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
