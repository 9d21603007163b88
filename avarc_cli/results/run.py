"""A classification run over a token cache: groups of images through the engine, results to the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from avarc_cli.errors import AvarcError, Interrupted
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.results import records
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.metrics import compute
from avarc_cli.results.records import Image
from avarc_cli.scoring.engine import Request, score_group
from avarc_cli.scoring.scores import ImageScores
from avarc_cli.tokens.cache import TokenCache

Progress = Callable[[int, dict[str, float]], None]  # (images done, running numbers)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to classify, and what to keep of it.

    labels: class id of each image (N_images,), -1 unknown; protocol: what the numbers depend on, for run.json;
    fixed_shapes: pad the last group, so that every batch of the run has the same shape (--deterministic).
    """

    model: LikelihoodModel
    cache: TokenCache
    labels: np.ndarray
    request: Request
    naming: records.Naming
    precision: str
    protocol: Mapping[str, Any]
    save_json: bool = False
    save_likelihood: bool = False
    fixed_shapes: bool = False


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Records in the order of the images, metrics, and the scores of the first images of this session."""

    records: list[dict[str, Any]]
    metrics: dict[str, Any]
    first: list[tuple[Image, ImageScores]] = field(default_factory=list)


def classify(
    run: Run,
    folder: RunFolder | None,
    *,
    show: int = 0,
    progress: Progress = lambda done, numbers: None,
    say: Callable[[str], None] = lambda message: None,
) -> RunResult:
    """Classify every image of the run's cache, going on where `folder` stops.

    Args:
        folder: where results go; None keeps them in memory only.
        show: keep the full scores of so many first images of this session.
        progress: called after every group. say: called when a batch had to be made smaller.
    Raises: Interrupted on Ctrl-C; AvarcError when even a single pair does not fit into memory.
    """
    done = folder.open(run.protocol) if folder else []
    right = sum(r["label_rank"] == 0 for r in done)
    labelled = sum(r["label_rank"] is not None for r in done)
    first: list[tuple[Image, ImageScores]] = []
    session_seconds = 0.0
    size = run.request.images_per_group(run.model)
    progress(len(done), {})
    try:
        while len(done) < len(run.cache):
            rows = np.arange(len(done), min(len(done) + size, len(run.cache)))
            started = time.perf_counter()
            run, scored = _score(run, rows, size, say)
            seconds = time.perf_counter() - started
            session_seconds += seconds
            images = [Image(int(i), run.cache.paths[i], int(run.labels[i])) for i in rows]
            lines = [_record(run, image, scores) for image, scores in zip(images, scored, strict=True)]
            if folder:
                _write_images(run, folder, images, scored)
                folder.append(lines, seconds)
            first += list(zip(images, scored, strict=True))[: max(0, show - len(first))]
            done += lines
            right += sum(r["label_rank"] == 0 for r in lines)
            labelled += sum(r["label_rank"] is not None for r in lines)
            progress(len(done), {"accuracy": right / labelled} if labelled else {})
    except KeyboardInterrupt:
        kept = f"; {len(done)} of {len(run.cache)} images are kept in '{folder.path}'" if folder else ""
        raise Interrupted("interrupted" + kept, fix="run the same command again to go on") from None
    seconds = folder.seconds if folder else session_seconds
    metrics = compute(done, seconds=seconds, candidates=len(run.request.candidates))
    if folder and not folder.finished:
        folder.finish(metrics)
    return RunResult(records=done, metrics=metrics, first=first)


def _score(run: Run, rows: np.ndarray, size: int, say: Callable[[str], None]) -> tuple[Run, list[ImageScores]]:
    """Scores of these images, with smaller batches if memory runs out; the run goes on with those."""
    padded = np.pad(rows, (0, size - len(rows)), mode="edge") if run.fixed_shapes else rows
    tokens_GSL = run.cache.tokens(padded)[:, : run.request.plan.samples]
    while True:
        try:
            return run, score_group(run.model, tokens_GSL, run.request)[: len(rows)]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            half = run.request.tokens_per_batch // 2
            if half < run.model.segment_ends[-1] // 8:
                raise AvarcError(
                    "not enough memory to score one pair of image and class",
                    str(error).splitlines()[0],
                    "use a smaller model, --precision bf16, or a machine with more memory",
                ) from None
        torch.cuda.empty_cache()
        say(f"out of memory: going on with batches of {half} tokens instead of {run.request.tokens_per_batch}")
        run = replace(run, request=replace(run.request, tokens_per_batch=half))


def _is_out_of_memory(error: BaseException) -> bool:
    """PyTorch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _record(run: Run, image: Image, scores: ImageScores) -> dict[str, Any]:
    ends, last = run.model.segment_ends, run.request.plan.stages[-1]
    return records.line(image, scores, run.naming, num_tokens=ends[last.segments - 1], precision=run.precision)


def _write_images(run: Run, folder: RunFolder, images: list[Image], scored: list[ImageScores]) -> None:
    for image, scores in zip(images, scored, strict=True):
        if run.save_json:
            folder.write(f"json/{image.index}.json", records.detail(image, scores, run.naming, run.protocol))
        if run.save_likelihood:
            folder.write(f"likelihood/{image.index}.npz", records.likelihood(image, scores, run.naming))
