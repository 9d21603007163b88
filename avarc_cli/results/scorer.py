"""Chunks of images to predictions, on this or another process: the scoring engine, with as much memory as there is.

Shapes: G images of a group, S samples, L tokens, O orders.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from avarc_cli.errors import AvarcError, UsageError, first_line, lacks_memory
from avarc_cli.progress import Notify, no_message
from avarc_cli.results import records
from avarc_cli.results.lines import Record
from avarc_cli.results.parts import ScoredChunk
from avarc_cli.results.records import RunImage
from avarc_cli.results.resume import token_digests
from avarc_cli.scoring.cascade import score_in_two_precisions
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.scores import ImageScores, IntN, TokensN
from avarc_cli.torch_flags import deterministic_algorithms
from avarc_cli.words import counted
from avarc_cli.work.chunks import TaskLoader, Tick

if TYPE_CHECKING:
    from avarc_cli.results.folder import RunFolder
    from avarc_cli.results.run import Run


@dataclass
class Scorer:
    """Scores the chunks of a run (`work.chunks.ChunkTask`), group by group.

    Files of single images are written as soon as their group is scored: the results hold lines only.
    """

    job: Run
    """What to score."""

    group: int
    """Images that are scored together; a chunk has whole groups."""

    folder: RunFolder | None = None
    """Where files of single images go."""

    say: Notify = no_message
    """Called with a message when a batch had to shrink; not in another process."""

    keep: list[tuple[RunImage, ImageScores]] | None = None
    """Where scores are collected, if they are asked for; not in another process."""

    def __post_init__(self) -> None:
        self._images_at_once = self.group  # fewer once memory has run out

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"say": no_message, "keep": None}

    @property
    def uses_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return torch.device(self.job.device).type == "cuda"

    def loader(self) -> TaskLoader[ScoredChunk]:
        """Makes this task in another process, with a model of its own. Raises: UsageError where none can be loaded."""
        if self.job.load is None:
            raise UsageError(
                "this model cannot be loaded in other processes", "it was made in this one", "score in this one"
            )
        but_model = {each.name: getattr(self.job, each.name) for each in fields(self.job) if each.name != "model"}
        return partial(_on_device, type(self.job), but_model, self.group, self.folder)

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, ScoredChunk]]:
        """Number and result of each of these chunks; tick is called after each, when it has been received."""
        for number, items in chunks.items():
            lines: list[Record] = []
            seconds = 0.0
            for first in range(items.start, items.stop, self.group):
                scored = self._score_group(np.arange(first, min(first + self.group, items.stop)))
                lines += scored.records
                seconds += scored.seconds
            yield number, ScoredChunk(lines, seconds)
            tick(len(items))

    def _score_group(self, rows: np.ndarray) -> ScoredChunk:
        job = self.job
        started = time.perf_counter()
        padded = np.pad(rows, (0, self.group - len(rows)), mode="edge") if job.deterministic else rows
        scored: list[ImageScores] = []
        while len(scored) < len(padded):
            scored += self._score(padded[len(scored) : len(scored) + self._images_at_once])
        seconds = time.perf_counter() - started
        images = [RunImage(int(i), job.cache.paths[i], int(job.labels[i])) for i in rows]
        pairs = list(zip(images, scored, strict=False))  # drops the padding
        digests = token_digests(job.cache, job.request.plan.samples, rows)
        lines = [_record(job, *pair) | {"tokens_digest": own} for pair, own in zip(pairs, digests, strict=True)]
        if self.folder is not None:
            _write_images(job, self.folder, pairs)
        if self.keep is not None:
            self.keep += pairs
        return ScoredChunk(lines, seconds)

    def _score(self, rows: np.ndarray) -> list[ImageScores]:
        """Scores of these images; none when memory ran out: the caller tries again with smaller batches."""
        job, plan = self.job, self.job.request.plan
        tokens_GSL = job.cache.tokens(rows)[:, : plan.samples]
        order_GOL = job.orders.of(job.cache.in_file(rows), tokens_GSL.shape[2], plan.orders)
        try:
            with deterministic_algorithms(job.deterministic):
                return self._scores(tokens_GSL, order_GOL)
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            self._shrink(len(rows), error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return []

    def _scores(self, tokens_GSL: TokensN, order_GOL: IntN | None) -> list[ImageScores]:
        job, others = self.job, self.job.others
        if job.cascade is None:
            return score_group(job.model, tokens_GSL, job.request, order_GOL, others)
        assert others is not None, "a cascade needs the model in two precisions"
        exact = partial(others, job.cascade.exact)
        return score_in_two_precisions(job.model, exact, tokens_GSL, job.request, job.cascade, order_GOL)

    def _shrink(self, images: int, error: BaseException) -> None:
        request = self.job.request
        if images > 1:
            self._images_at_once = images // 2
            fewer = counted(self._images_at_once, "image")
            self.say(f"out of memory: continuing with {fewer} at once instead of {images:,}")
            return
        smaller = request.halved()
        if smaller.tokens_per_batch < self.job.model.segment_ends[0]:
            raise AvarcError(
                "not enough memory to score one pair of image and class",
                first_line(error),
                "use a smaller model, --precision bf16, or a machine with more memory",
            ) from None
        fewer = counted(smaller.tokens_per_batch, "token")
        self.say(f"out of memory: continuing with batches of {fewer} instead of {request.tokens_per_batch:,}")
        self.job = replace(self.job, request=smaller)


def _on_device(
    kind: type[Run], but_model: Mapping[str, Any], group: int, folder: RunFolder | None, device: str
) -> Scorer:
    others = but_model["others"] and but_model["others"].on(device)
    job = kind(**{**but_model, "model": but_model["load"](device), "device": device, "others": others})
    return Scorer(job, group, folder)


def _record(job: Run, image: RunImage, scores: ImageScores) -> dict[str, Any]:
    num_tokens = job.model.segment_ends[scores.segments - 1]
    precision = scores.stages[-1].precision
    if job.cascade is not None or precision is None:
        precision = job.precision
    return records.line(image, scores, job.candidate_labels, num_tokens=num_tokens, precision=precision)


def _write_images(job: Run, folder: RunFolder, pairs: list[tuple[RunImage, ImageScores]]) -> None:
    for image, scores in pairs:
        if job.save_json:
            folder.write(f"json/{image.index}.json", records.detail(image, scores, job.candidate_labels, job.protocol))
        if job.save_likelihood:
            saved = records.likelihood(image, scores, job.candidate_labels, kind=job.protocol.get("likelihood", ""))
            folder.write(f"likelihood/{image.index}.npz", saved)
        if job.save_segments:
            folder.write(records.SEGMENTS.format(image.index), records.segments(scores))
        if job.save_ranking:
            folder.write(records.RANKING.format(image.index), records.ranking(scores))
