"""A classification run over a token cache: its images in chunks, which one or several processes score.

A run folder is locked as an output of `tokens.encode` is: processes that score different chunks share it, and one at a
time begins or finishes the run. The last one to finish its chunks turns them into the finished run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avarc_cli.errors import Interrupted, UsageError
from avarc_cli.frames import frame
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics, no_progress
from avarc_cli.results import metrics, records
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.lines import Record
from avarc_cli.results.parts import Division, ScoredChunk
from avarc_cli.results.prediction_files import COLUMNS, row
from avarc_cli.results.records import RunImage
from avarc_cli.results.resume import Tally, are_current
from avarc_cli.results.scorer import Scorer
from avarc_cli.results.unfinished import Opening
from avarc_cli.scoring.cascade import Cascade
from avarc_cli.scoring.orders import ONE_RASTER, Orders
from avarc_cli.scoring.other_precisions import OtherPrecisions
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import ImageScores
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.words import are, counted
from avarc_cli.work import chunks
from avarc_cli.work.chunks import CORRUPT, ChunkFolder, Chunks, ChunkTask
from avarc_cli.work.locks import ChunkLock, chunk_lock
from avarc_cli.work.run import compute
from avarc_cli.work.shards import UNDIVIDED, Shard
from avarc_cli.work.workers import HERE, Workers, check_division

if TYPE_CHECKING:
    from pandas import DataFrame

NULLABLE = {int: "Int64", bool: "boolean"}  # types of pandas for columns where a label may be unknown


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to classify, and what to save of it."""

    model: LikelihoodModel
    """What scores them."""

    cache: TokenCache
    """The images."""

    labels: np.ndarray
    """Class id of each image, (images,) int64; -1 unknown."""

    request: ScoringRequest
    """Candidates, plan and score."""

    candidate_labels: records.CandidateLabels
    """What the candidates are called, and which of them count as correct."""

    precision: str
    """Of the scores that decide, for the size of rounding errors."""

    device: str = "cpu"
    """Of the model, as torch names it."""

    load: Callable[[str], LikelihoodModel] | None = None
    """Loads the model in another process, on the device that it is called with; picklable. None where none can."""

    others: OtherPrecisions | None = None
    """The model in other precisions, for stages that name one, and for a cascade; None where there are no such."""

    cascade: Cascade | None = None
    """How two precisions share the work; None where the model scores alone."""

    protocol: Mapping[str, Any]
    """What the numbers depend on, for run.json."""

    orders: Orders = ONE_RASTER
    """In which tokens are scored."""

    save_json: bool = False
    """Write each image's stages."""

    save_likelihood: bool = False
    """Write each image's token log-probabilities."""

    save_segments: bool = False
    """Write each image's sums over segments."""

    save_ranking: bool = False
    """Write each image's candidates, best first, with their posterior probabilities."""

    deterministic: bool = False
    """Use torch's deterministic algorithms, and pad the last group, so that every batch has the same shape."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run gave. While chunks are missing, it has no records and no metrics."""

    records: Sequence[Record]
    """Lines of predictions.jsonl, in the order of the images. Those of a run folder are read when they are used."""

    metrics: dict[str, Any]
    """metrics.json."""

    files: tuple[Path, ...] = ()
    """run.json, predictions.jsonl, predictions.csv and metrics.json; none of a run in memory."""

    scores: list[tuple[RunImage, ImageScores]] = field(default_factory=list)
    """Scores of the images of this session, if they were asked for."""

    chunks: int = 1
    """Finished chunks."""

    all_chunks: int = 1
    """Chunks of the run."""

    others_at_work: bool = False
    """Whether other shards are being scored, so that the run is not finished."""

    @property
    def complete(self) -> bool:
        """Whether the run is finished."""
        return self.chunks == self.all_chunks and not self.others_at_work

    def to_dict(self) -> dict[str, Any]:
        """Metrics and files, as JSON types. The predictions are `records`."""
        return {"complete": self.complete, "metrics": self.metrics, "files": [str(path) for path in self.files]}

    def to_pandas(self) -> DataFrame:
        """The predictions as in predictions.csv (docs/formats.md), a row for each image.

        Raises: UsageError without pandas.
        """
        types = {name: NULLABLE[kind] for name, kind in COLUMNS.items() if kind in NULLABLE}
        return frame(map(row, self.records), columns=list(COLUMNS), types=types)


def accuracy_note(numbers: Mapping[str, float]) -> str:
    """The running numbers of a `MetricsProgress`, as the note beside a progress bar."""
    return f"accuracy {numbers['accuracy']:.2%}" if "accuracy" in numbers else ""


def classify(
    run: Run,
    folder: RunFolder | None,
    *,
    shard: Shard = UNDIVIDED,
    workers: Workers = HERE,
    keep_scores: bool = False,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
) -> RunResult:
    """Classify the images of the run's cache, continuing the run in `folder`.

    Args:
        folder: where results go; None keeps them in memory only.
        shard: classify only this part of the chunks. All shards of one folder may run at once, on any machines that
            share it. The last one finishes the run.
        workers: who scores the chunks.
        keep_scores: return the full scores of the images of this session. Only where this process scores them.
        progress: called when a chunk is finished, with the images done and running numbers; of a shard, with its own.
        say: called with messages for the user, such as that a batch had to shrink.
    Raises: Interrupted on Ctrl-C; UsageError when the folder holds another run; AvarcError when even a single pair does
        not fit into memory, or another process computes the same chunks.
    """
    check_division(shard, workers, out=None if folder is None else folder.path, overwrite=False)
    if workers.elsewhere and keep_scores:
        raise UsageError(
            f"scores cannot be kept with {workers.elsewhere}", "they stay in its workers", "leave out keep_scores"
        )
    scores: list[tuple[RunImage, ImageScores]] = []
    scorer = Scorer(
        run,
        run.request.images_per_group(run.model),
        None if folder is None else RunFolder(folder.path.absolute()),
        say,
        scores if keep_scores else None,
    )
    if folder is None:
        return replace(_in_memory(run, scorer, progress), scores=scores)
    folder.prepare()
    with chunk_lock(folder.lock_name, wait=shard.of > 1) as lock:
        division = Division.of(len(run.cache), scorer.group, len(run.request.candidates), _about(run))
        is_current = partial(are_current, run.cache, run.labels, run.request.plan.samples)
        opening = Opening(folder, division, is_current, shard, lock, say)
        work = RunWork(folder, opening, scorer, workers, progress, say)
        return replace(work.do(run.protocol), scores=scores)


def _about(run: Run) -> dict[str, Any]:
    """What metrics.json says of the request."""
    about: dict[str, Any] = {"temperature": run.request.temperature}
    if run.model.any_order:
        about |= {"orders": run.request.plan.orders, "combine": run.request.combine}
    if "likelihood" in run.protocol:
        about["likelihood"] = run.protocol["likelihood"]
    return about


def _in_memory(run: Run, scorer: Scorer, progress: MetricsProgress) -> RunResult:
    groups, tally = Chunks(len(run.cache), scorer.group), Tally()
    lines: list[Record] = []
    seconds = 0.0
    progress(0, {})
    try:
        chunks_of = {number: groups.items_of(number) for number in range(groups.count)}
        for _, scored in scorer.run(chunks_of, lambda items: progress(tally.images, tally.accuracy())):
            tally.add(scored.records)
            lines += scored.records
            seconds += scored.seconds
    except KeyboardInterrupt:
        raise Interrupted("interrupted", fix="what is finished is kept only with --out") from None
    candidates = len(run.request.candidates)
    return RunResult(
        records=lines, metrics=metrics.compute(lines, seconds=seconds, candidates=candidates) | _about(run)
    )


@dataclass(frozen=True)
class _Counting(ChunkFolder[ScoredChunk]):
    """Counts the predictions that are saved."""

    tally: Tally

    def save(self, number: int, result: ScoredChunk) -> None:
        super().save(number, result)
        self.tally.add(result.records)


@dataclass(frozen=True)
class RunWork:
    """What one call of `classify` does to its run folder."""

    folder: RunFolder
    opening: Opening
    task: ChunkTask[ScoredChunk]
    """What scores the chunks."""
    workers: Workers = HERE
    progress: MetricsProgress = no_metrics
    say: Notify = no_message

    def do(self, protocol: Mapping[str, Any]) -> RunResult:
        """Score the missing chunks of the shard, and finish the run if no other shard is at work.

        Args:
            protocol: the request, for run.json.
        Raises: as `classify`.
        """
        opening, lock = self.opening, self.opening.lock
        tally = opening.open(protocol)
        if tally is None:
            self.progress(opening.division.chunks.count_items(opening.mine), {})
            return self._finished()
        parts, mine = opening.parts, opening.mine
        counting = _Counting(parts.path, parts.chunks, parts.format, tally)

        def report(done: int, total: int | None = None, note: str = "", /) -> None:
            self.progress(done, tally.accuracy())

        lock.release_exclusive()
        try:
            missing = set(mine) - parts.finished()
            compute(counting, self.task, missing, of=mine, workers=self.workers, progress=report, say=self.say)
            lock.acquire_exclusive()
            return self._close(counting, lock)
        except KeyboardInterrupt:
            done, images = parts.chunks.count_items(parts.finished()), parts.chunks.items
            kept = f"{done:,} of {counted(images, 'image')} {are(images)} kept"
            what = f"interrupted; {kept} in '{self.folder.path}'"
            raise Interrupted(what, fix="run the same command again to continue") from None

    def _close(self, parts: ChunkFolder[ScoredChunk], lock: ChunkLock) -> RunResult:
        """Finish the run, unless chunks are missing or other shards are at work."""
        alone, there, every = lock.is_sole_holder(), len(parts.finished()), parts.chunks.count
        if not alone or there < every:
            return RunResult(records=(), metrics={}, chunks=there, all_chunks=every, others_at_work=not alone)
        division = self.opening.division
        self.folder.finish(self._all_results(parts), division.candidates, division.about)
        chunks.delete(self.folder.parts)
        self.folder.remove_leftovers()
        return self._finished()

    def _all_results(self, parts: ChunkFolder[ScoredChunk]) -> Iterator[ScoredChunk]:
        """Every chunk in order; those that are corrupt, or of images that changed since, are computed again."""
        for number in range(parts.chunks.count):
            try:
                yield parts.load(number)
            except CORRUPT:
                compute(parts, self.task, [number], of=[number], workers=self.workers, progress=no_progress)
                yield from parts.stream([number])

    def _finished(self) -> RunResult:
        every = self.opening.division.chunks.count
        records_there, numbers = self.folder.read_predictions(), self.folder.read_metrics()
        files = self.folder.files
        return RunResult(records=records_there, metrics=numbers, files=files, chunks=every, all_chunks=every)
