"""Scores of the test images: chunk by chunk, in files, so that several processes can share the work.

Shapes: N images, L tokens, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avarc_cli.loaded import LoadedModel
from avarc_cli.progress import Notify, Progress, no_message, no_progress
from avarc_cli.scoring.exhaustive import ImageGroups
from avarc_cli.scoring.scores import FloatN
from avarc_cli.work import chunks
from avarc_cli.work.chunks import ChunkFolder, Chunks, TaskLoader, Tick, recorded_request
from avarc_cli.work.run import compute, recompute_corrupt
from avarc_cli.work.workers import HERE, Workers


def score(
    model: LoadedModel,
    tokens_NL: torch.Tensor,
    class_ids_K: Sequence[int],
    parts: Path,
    *,
    workers: Workers = HERE,
    progress: Progress = no_progress,
    say: Notify = no_message,
) -> FloatN:
    """log p(x | y) in nats of every image, (N, K) float64, as `scoring.exhaustive.log_likelihoods`.

    Args:
        parts: folder for finished chunks, which an interrupted call continues. The caller deletes it, and is the only
            process that uses it.
        workers: who scores.
    Raises: AvarcError when a chunk cannot be computed; OSError.
    """
    tokens = tokens_NL.numpy().astype(np.uint16)
    groups = ImageGroups.choose(class_ids_K, model.likelihood, torch.device(model.device))
    asked = {
        "model": model.sha256,
        "bank": None if model.bank is None else model.bank.protocol(),
        "tokens": hashlib.sha256(tokens.tobytes()).hexdigest(),
    }
    recorded = recorded_request(parts) or {}
    if recorded == asked | {"groups": recorded.get("groups")}:
        groups = _read_groups(recorded["groups"], groups)
    request = asked | {"groups": asdict(groups) | {"class_ids": list(groups.class_ids)}}
    folder = ChunkFolder(parts, Chunks(len(tokens), groups.size), _ScoresFormat(len(class_ids_K)))
    if recorded != request:
        folder.create(request)
    folder.clean(range(folder.chunks.count))
    task, every = _GroupScorer(model, tokens, groups), range(folder.chunks.count)
    missing = set(every) - folder.finished()
    compute(folder, task, missing, of=every, workers=workers, progress=progress, say=say)
    recompute_corrupt(folder, task, every, workers=workers, progress=no_progress, say=say)
    return np.concatenate(list(folder.stream(every)))


def remove(parts: Path) -> None:
    """Delete the chunks of `score`. Raises: OSError."""
    chunks.delete(parts)


def _read_groups(recorded: Any, chosen: ImageGroups) -> ImageGroups:
    """The recorded groups, on which roundings depend, if they are of the same classes; otherwise those chosen."""
    try:
        there = ImageGroups(tuple(recorded["class_ids"]), int(recorded["tokens_per_batch"]), int(recorded["size"]))
    except (KeyError, TypeError, ValueError):
        return chosen
    return there if there.class_ids == chosen.class_ids and there.size > 0 else chosen


@dataclass(frozen=True)
class _GroupScorer:
    """Scores groups of images (`work.chunks.ChunkTask`); a chunk is one group."""

    model: LoadedModel
    tokens: np.ndarray
    """(N, L) uint16, as a cache has them."""
    groups: ImageGroups

    @property
    def uses_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return torch.device(self.model.device).type == "cuda"

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, FloatN]]:
        """Number and scores of each group."""
        for number, items in chunks.items():
            some = torch.from_numpy(self.tokens[items.start : items.stop].astype(np.int64))
            yield number, self.groups.score(self.model.likelihood, some, items.start)
            tick(len(items))

    def loader(self) -> TaskLoader[FloatN]:
        """Makes this task in another process, with a model of its own."""
        return partial(_on_device, self.model.loader(), self.tokens, self.groups)


def _on_device(
    load: Callable[[str], LoadedModel], tokens: np.ndarray, groups: ImageGroups, device: str
) -> _GroupScorer:
    return _GroupScorer(load(device), tokens, groups)


@dataclass(frozen=True)
class _ScoresFormat:
    """The files of chunks (`work.chunks.ChunkFormat`)."""

    classes: int

    def to_arrays(self, result: FloatN) -> dict[str, np.ndarray]:
        return {"scores": result}

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> FloatN:
        scores: FloatN = arrays["scores"]
        if (scores.shape, scores.dtype) != ((len(items), self.classes), np.dtype(np.float64)):
            raise ValueError("it is of other images or classes")
        return scores
