"""A classification run over a token cache: groups of images through the engine, results to the run folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from avarc_cli.errors import AvarcError, Interrupted, first_line, lacks_memory
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.progress import MetricsProgress, Notify, no_message, no_metrics
from avarc_cli.results import records
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.metrics import compute
from avarc_cli.results.records import RunImage
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.orders import ONE_RASTER, Orders
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import ImageScores
from avarc_cli.tokens.cache import ROWS_PER_BLOCK, TokenCache
from avarc_cli.torch_flags import deterministic_algorithms
from avarc_cli.words import are, counted


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
    """Of the model, for the size of rounding errors."""

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

    deterministic: bool = False
    """Use torch's deterministic algorithms, and pad the last group, so that every batch has the same shape."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run gave."""

    records: list[dict[str, Any]]
    """Lines of predictions.jsonl, in the order of the images."""

    metrics: dict[str, Any]
    """metrics.json."""

    scores: list[tuple[RunImage, ImageScores]] = field(default_factory=list)
    """Scores of the images of this session, if they were asked for."""


def accuracy_note(numbers: Mapping[str, float]) -> str:
    """The running numbers of a `MetricsProgress`, as the note beside a progress bar."""
    return f"accuracy {numbers['accuracy']:.2%}" if "accuracy" in numbers else ""


def classify(
    run: Run,
    folder: RunFolder | None,
    *,
    keep_scores: bool = False,
    progress: MetricsProgress = no_metrics,
    say: Notify = no_message,
) -> RunResult:
    """Classify every image of the run's cache, continuing the run in `folder`.

    Args:
        folder: where results go; None keeps them in memory only.
        keep_scores: return the full scores of the images of this session.
        progress: called after every group. say: called with a message when a batch had to shrink.
    Raises: Interrupted on Ctrl-C; AvarcError when even a single pair does not fit into memory, or another process
        writes to the folder.
    """
    with folder.lock() if folder else nullcontext():
        group = run.request.images_per_group(run.model)
        done: list[dict[str, Any]] = []
        if folder:
            are_current, images = partial(_are_current, run), len(run.cache)
            done = folder.open(run.protocol, images=images, group=group, are_current=are_current, say=say)
        if folder and folder.finished:
            progress(len(done), {})
            return RunResult(records=done, metrics=folder.read_metrics())
        session = _Session(run, folder, done, group, keep_scores, say)
        progress(len(done), session.accuracy())
        try:
            for number in session.missing_groups():
                session.classify_group(number)
                progress(len(done), session.accuracy())
        except KeyboardInterrupt:
            kept = f"{len(done):,} of {counted(len(run.cache), 'image')} {are(len(run.cache))} kept"
            what = f"interrupted; {kept} in '{folder.path}'" if folder else "interrupted"
            raise Interrupted(what, fix="run the same command again to continue") from None
        done.sort(key=lambda record: int(record["index"]))
        seconds = folder.seconds if folder else session.seconds
        metrics = compute(done, seconds=seconds, candidates=len(run.request.candidates))
        metrics["temperature"] = run.request.temperature
        if run.model.any_order:
            metrics |= {"orders": run.request.plan.orders, "combine": run.request.combine}
        if folder:
            folder.finish(metrics)
    return RunResult(records=done, metrics=metrics, scores=session.scores)


@dataclass
class _Session:
    """The part of a run that one call of `classify` does."""

    run: Run
    folder: RunFolder | None

    done: list[dict[str, Any]]
    """Records so far, those of earlier sessions included."""

    group: int
    """Images that are scored together, and journalled together."""

    keep_scores: bool
    say: Notify

    seconds: float = 0.0
    """Spent scoring in this session."""

    scores: list[tuple[RunImage, ImageScores]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images_at_once = self.group  # fewer once memory has run out

    def accuracy(self) -> dict[str, float]:
        """Over the images so far whose label is a candidate; empty when there is none."""
        ranks = [r["label_rank"] for r in self.done if r["label_rank"] is not None]
        return {"accuracy": ranks.count(0) / len(ranks)} if ranks else {}

    def missing_groups(self) -> list[int]:
        """Numbers of the groups that are not done."""
        done = {record["index"] // self.group for record in self.done}
        return [number for number in range(-(-len(self.run.cache) // self.group)) if number not in done]

    def classify_group(self, number: int) -> None:
        """Score a group and add it to the journal."""
        run = self.run
        rows = np.arange(number * self.group, min((number + 1) * self.group, len(run.cache)))
        started = time.perf_counter()
        padded = np.pad(rows, (0, self.group - len(rows)), mode="edge") if run.deterministic else rows
        scored: list[ImageScores] = []
        while len(scored) < len(padded):
            scored += self._score(padded[len(scored) : len(scored) + self.images_at_once])
        seconds = time.perf_counter() - started
        self.seconds += seconds
        images = [RunImage(int(i), run.cache.paths[i], int(run.labels[i])) for i in rows]
        pairs = list(zip(images, scored, strict=False))  # drops the padding
        digests = _token_digests(run, rows)
        lines = [_record(run, *pair) | {"tokens_digest": own} for pair, own in zip(pairs, digests, strict=True)]
        if self.folder:
            _write_images(run, self.folder, pairs)
            self.folder.append(lines, seconds)
        if self.keep_scores:
            self.scores += pairs
        self.done += lines

    def _score(self, rows: np.ndarray) -> list[ImageScores]:
        """Scores of these images; none when memory ran out: the caller tries again with smaller batches."""
        run, plan = self.run, self.run.request.plan
        tokens_GSL = run.cache.tokens(rows)[:, : plan.samples]
        order_GOL = run.orders.of(run.cache.in_file(rows), tokens_GSL.shape[-1], plan.orders)
        try:
            with deterministic_algorithms(run.deterministic):
                return score_group(run.model, tokens_GSL, run.request, order_GOL)
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            self._shrink(len(rows), error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return []

    def _shrink(self, images: int, error: BaseException) -> None:
        request = self.run.request
        if images > 1:
            self.images_at_once = images // 2
            fewer = counted(self.images_at_once, "image")
            self.say(f"out of memory: continuing with {fewer} at once instead of {images:,}")
            return
        half = request.tokens_per_batch // 2
        if half < self.run.model.segment_ends[0]:
            raise AvarcError(
                "not enough memory to score one pair of image and class",
                first_line(error),
                "use a smaller model, --precision bf16, or a machine with more memory",
            ) from None
        fewer = counted(half, "token")
        self.say(f"out of memory: continuing with batches of {fewer} instead of {request.tokens_per_batch:,}")
        self.run = replace(self.run, request=replace(request, tokens_per_batch=half))


def _record(run: Run, image: RunImage, scores: ImageScores) -> dict[str, Any]:
    num_tokens = run.model.segment_ends[scores.segments - 1]
    return records.line(image, scores, run.candidate_labels, num_tokens=num_tokens, precision=run.precision)


def _token_digests(run: Run, rows: np.ndarray) -> list[str]:
    """Digests of the tokens that images are scored on: by them a prediction is known to be of the present image."""
    tokens_GSL = run.cache.tokens(rows)[:, : run.request.plan.samples].astype("<u2")
    return [hashlib.blake2b(tokens_SL.tobytes(), digest_size=8).hexdigest() for tokens_SL in tokens_GSL]


def _are_current(run: Run, done: Sequence[dict[str, Any]]) -> list[bool | None]:
    """Which predictions are still of the run's images and tokens (`resume.AreCurrent`)."""
    current: list[bool | None] = []
    for start in range(0, len(done), ROWS_PER_BLOCK):
        block = done[start : start + ROWS_PER_BLOCK]
        there = [r["index"] < len(run.cache) and r["path"] == run.cache.paths[r["index"]] for r in block]
        rows = [record["index"] for record, found in zip(block, there, strict=True) if found]
        digests = dict(zip(rows, _token_digests(run, np.array(rows, dtype=np.int64)), strict=True)) if rows else {}
        for record, found in zip(block, there, strict=True):
            recorded = record.get("tokens_digest")
            unknown = found and recorded is None
            current.append(None if unknown else found and recorded == digests[record["index"]])
    return current


def _write_images(run: Run, folder: RunFolder, pairs: list[tuple[RunImage, ImageScores]]) -> None:
    for image, scores in pairs:
        if run.save_json:
            folder.write(f"json/{image.index}.json", records.detail(image, scores, run.candidate_labels, run.protocol))
        if run.save_likelihood:
            folder.write(f"likelihood/{image.index}.npz", records.likelihood(image, scores, run.candidate_labels))
        if run.save_segments:
            folder.write(records.SEGMENTS.format(image.index), records.segments(scores))
