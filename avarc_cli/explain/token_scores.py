"""Token log-probabilities of the images that are to be explained, scored here or by other processes.

Shapes: K classes, O orders, L tokens, R x C cells of a footprint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avarc_cli.errors import Interrupted
from avarc_cli.loaded import LoadedModel
from avarc_cli.progress import Notify, Progress, no_message, no_progress
from avarc_cli.results.resume import token_digests
from avarc_cli.scoring.estimator import Estimator
from avarc_cli.scoring.exhaustive import order_log_probs
from avarc_cli.scoring.orders import ONE_RASTER, Orders
from avarc_cli.storage import remove_leftovers_of
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.request import default_chunk_size
from avarc_cli.words import are, counted
from avarc_cli.work.chunks import ChunkFolder, Chunks, TaskLoader, Tick, recorded_request
from avarc_cli.work.run import compute, recompute_corrupt
from avarc_cli.work.shards import UNDIVIDED
from avarc_cli.work.workers import HERE, Workers, check_division

MODEL_IN_USE = Estimator()


@dataclass(frozen=True)
class TokenScoring:
    """How tokens are scored for a map."""

    tokens_per_batch: int
    """Tokens of all pairs of one forward pass."""
    orders: Orders = ONE_RASTER
    """Where the orders come from that a map is the mean over."""
    count: int = 1
    """How many of them."""
    estimator: Estimator = MODEL_IN_USE
    """What was applied to the model, for other processes that load it."""


@dataclass(frozen=True)
class ScoringWork:
    """Who scores, and where what is finished is kept."""

    on: Workers = HERE
    """Who scores; others than this process need a folder."""
    folder: Path | None = None
    """Keeps the scores of finished images, to be continued. The caller deletes it (`work.chunks.delete`)."""
    progress: Progress = no_progress
    """Called with the images done."""
    say: Notify = no_message
    """Called when a worker fails, while the others continue."""


@dataclass(frozen=True)
class Wanted:
    """What is to be scored of one image."""

    row: int
    """Of the image in its token cache."""
    class_ids: tuple[int, ...]
    """(K,); the unconditional class may be one of them."""


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What was scored of one image."""

    log_prob_KOL: np.ndarray
    """In nats, float32."""
    footprints: np.ndarray | None = None
    """(L, R, C) float32 (`Explanation.footprints`); None where tokens lie on grids."""


@dataclass(frozen=True)
class TokenScorer:
    """Scores chunks of images (`work.chunks.ChunkTask`), each image by itself."""

    model: LoadedModel
    cache: TokenCache
    wanted: tuple[Wanted, ...]
    how: TokenScoring

    @property
    def uses_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return torch.device(self.model.device).type == "cuda"

    def loader(self) -> TaskLoader[list[TokenScores]]:
        """Makes this task in another process, with a model of its own."""
        return partial(_on_device, self.model.loader(), self.cache, self.wanted, self.how)

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, list[TokenScores]]]:
        """Number and result of each of these chunks. Raises: AvarcError as `order_log_probs`."""
        for number, items in chunks.items():
            scores = []
            for item in items:
                scores.append(self._score(self.wanted[item]))
                tick(1)
            yield number, scores

    def _score(self, wanted: Wanted) -> TokenScores:
        model, how, rows = self.model, self.how, np.array([wanted.row])
        tokens_1L = torch.from_numpy(self.cache.tokens(rows)[:, 0])
        order_1OL = how.orders.of(self.cache.in_file(rows), tokens_1L.shape[1], how.count)
        log_prob_1KOL = order_log_probs(model.likelihood, tokens_1L, wanted.class_ids, how.tokens_per_batch, order_1OL)
        grids = self.cache.header.layout.grids
        footprints = None if grids else model.tokenizer.footprints(tokens_1L[0])
        return TokenScores(log_prob_1KOL[0], None if footprints is None else footprints.cpu().numpy())

    def request(self) -> dict[str, Any]:
        """What the scores depend on, as JSON types."""
        how, rows = self.how, np.array([wanted.row for wanted in self.wanted])
        request = {
            "model": self.model.protocol(),
            "rows": self.cache.in_file(rows).tolist(),
            "classes": [wanted.class_ids for wanted in self.wanted],
            "tokens": token_digests(self.cache, 1, rows),
            "orders": how.orders.protocol("mean") | {"count": how.count},
            "estimator": asdict(how.estimator),
            "tokens_per_batch": how.tokens_per_batch,
        }
        as_json: dict[str, Any] = json.loads(json.dumps(request))
        return as_json


def _on_device(
    load: Callable[[str], LoadedModel],
    cache: TokenCache,
    wanted: tuple[Wanted, ...],
    how: TokenScoring,
    device: str,
) -> TokenScorer:
    model = load(device)
    likelihood = how.estimator.applied(model.likelihood, model.name)
    return TokenScorer(replace(model, likelihood=likelihood), cache, wanted, how)


@dataclass(frozen=True)
class _ScoresFormat:
    """The files of chunks (`work.chunks.ChunkFormat`)."""

    wanted: tuple[Wanted, ...]
    length: int
    """L."""

    def to_arrays(self, result: list[TokenScores]) -> dict[str, np.ndarray]:
        arrays = {f"log_prob_{number}": scores.log_prob_KOL for number, scores in enumerate(result)}
        shown = ((number, scores.footprints) for number, scores in enumerate(result))
        return arrays | {f"footprints_{number}": each for number, each in shown if each is not None}

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> list[TokenScores]:
        return [self._of_image(number, self.wanted[item], arrays) for number, item in enumerate(items)]

    def _of_image(self, number: int, wanted: Wanted, arrays: Mapping[str, np.ndarray]) -> TokenScores:
        log_prob_KOL = arrays[f"log_prob_{number}"]
        K, _, L = log_prob_KOL.shape
        if (len(wanted.class_ids), self.length) != (K, L) or log_prob_KOL.dtype != np.float32:
            raise ValueError(f"it holds {log_prob_KOL.dtype} of shape {log_prob_KOL.shape}")
        return TokenScores(log_prob_KOL, arrays.get(f"footprints_{number}"))


def score(scorer: TokenScorer, work: ScoringWork) -> Iterator[TokenScores]:
    """The scores of all images, in order.

    Raises: Interrupted on Ctrl-C; UsageError for workers without a folder; AvarcError as `work.run.compute`, and when
        something else than a folder of chunks has the folder's name.
    """
    check_division(UNDIVIDED, work.on, out=work.folder, overwrite=False)
    images = len(scorer.wanted)
    if work.folder is None:
        for number, (_, [scores]) in enumerate(scorer.run({i: range(i, i + 1) for i in range(images)}, lambda _: None)):
            work.progress(number + 1, images)
            yield scores
        return
    there = replace(scorer.cache, path=scorer.cache.path.absolute())  # other processes may read it
    scorer = replace(scorer, cache=there)
    chunks = Chunks(images, default_chunk_size(images, 1))
    parts = ChunkFolder(work.folder, chunks, _ScoresFormat(scorer.wanted, scorer.cache.header.layout.num_tokens))
    _open(parts, scorer.request())
    every = range(chunks.count)
    try:
        missing = set(every) - parts.finished()
        compute(parts, scorer, missing, of=every, workers=work.on, progress=work.progress, say=work.say)
        recompute_corrupt(parts, scorer, every, workers=work.on, progress=work.progress, say=work.say)
    except KeyboardInterrupt:
        done = chunks.count_items(parts.finished())
        what = f"interrupted; {done:,} of {counted(images, 'image')} {are(done)} kept in '{work.folder}'"
        raise Interrupted(what, fix="run the same command again to continue") from None
    for chunk in parts.stream(every):
        yield from chunk


def _open(parts: ChunkFolder[list[TokenScores]], request: dict[str, Any]) -> None:
    """Continue what an interrupted call with the same request left; otherwise begin."""
    remove_leftovers_of(parts.path)
    if recorded_request(parts.path) == request:
        parts.clean(range(parts.chunks.count))
    else:
        parts.create(request)
