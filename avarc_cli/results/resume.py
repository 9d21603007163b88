"""Whether a run folder holds the run that is asked for, and which of its predictions a continued run keeps."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from avarc_cli.data.labels import UNKNOWN
from avarc_cli.errors import UsageError, describe_differences
from avarc_cli.results.lines import Record
from avarc_cli.tokens.cache import ROWS_PER_BLOCK, TokenCache
from avarc_cli.work.chunks import Chunks

AreCurrent: TypeAlias = Callable[[Sequence[Record]], "list[bool | None]"]
"""Of each line of predictions: whether it is of the image, the label and the tokens that the run has now; None if it
does not say what tokens it is of, as in earlier versions."""

# What does not decide about the numbers, or only about their last bits, or is a name of what has a digest.
# A cascade predicts the same with any measurement of its rounding noise.
NOTES = frozenset({"threads", "label_space", "options", "places", "cascade"})
NAMES = frozenset({"name", "file"})


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The fields of run.json that make two requests different, with both values; empty for the same request."""
    # Earlier versions did not record whether a limit was given.
    count = "limit" if "limit" in _tokens(recorded) else "images"
    return describe_differences(_decisive(recorded, count), _decisive(asked, count))


def is_same(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether two requests are the same, and of images that are called the same."""
    return not differences(recorded, asked) and source(recorded) == source(asked)


def source(protocol: Mapping[str, Any]) -> Any:
    """What the images of a run are called."""
    return _tokens(protocol).get("source")


def _decisive(protocol: Mapping[str, Any], count: str) -> dict[str, Any]:
    kept = {name: value for name, value in protocol.items() if name not in NOTES}
    for part in ("model", "tokenizer"):
        if isinstance(kept.get(part), Mapping) and "sha256" in kept[part]:
            kept[part] = {name: value for name, value in kept[part].items() if name not in NAMES}
    if "tokens" in kept:
        # The source is decided by the predictions themselves (`Review.check_source`).
        notes = {"source", "images", "limit"} - {count}
        kept["tokens"] = {name: value for name, value in _tokens(protocol).items() if name not in notes}
    return kept


def _tokens(protocol: Mapping[str, Any]) -> Mapping[str, Any]:
    tokens = protocol.get("tokens")
    return tokens if isinstance(tokens, Mapping) else {}


def token_digests(cache: TokenCache, samples: int, rows: np.ndarray) -> list[str]:
    """Digests of the tokens that images are scored on: by them a prediction is known to be of the present image."""
    tokens_GSL = cache.tokens(rows)[:, :samples]
    tokens_GSL = tokens_GSL.astype("<f4" if tokens_GSL.dtype.kind == "f" else "<u2")  # continuous ones, or codes
    return [hashlib.blake2b(tokens_SL.tobytes(), digest_size=8).hexdigest() for tokens_SL in tokens_GSL]


def are_current(cache: TokenCache, labels: np.ndarray, samples: int, records: Sequence[Record]) -> list[bool | None]:
    """Which of some predictions are still of the images and tokens of a cache (`AreCurrent`).

    Args:
        labels: of its images, as the model counts them; UNKNOWN is recorded as none.
    """

    def is_there(record: Record) -> bool:
        index = record["index"]
        if index >= len(cache) or record["path"] != cache.paths[index]:
            return False
        label = int(labels[index])
        return bool(record["label"] == (None if label == UNKNOWN else label))

    there = list(map(is_there, records))
    rows = [record["index"] for record, found in zip(records, there, strict=True) if found]
    digests = dict(zip(rows, token_digests(cache, samples, np.array(rows)), strict=True)) if rows else {}
    current: list[bool | None] = []
    for record, found in zip(records, there, strict=True):
        recorded = record.get("tokens_digest")
        unknown = found and recorded is None
        current.append(None if unknown else found and recorded == digests[record["index"]])
    return current


@dataclass
class Tally:
    """Running numbers of predictions, for the progress display."""

    images: int = 0
    labelled: int = 0
    """Images whose label is a candidate."""
    right: int = 0

    def add(self, records: Iterable[Record]) -> None:
        """Count these predictions."""
        for record in records:
            self.images += 1
            self.labelled += record["label_rank"] is not None
            self.right += record["label_rank"] == 0

    def join(self, other: Tally) -> None:
        """Count what another tally has counted."""
        self.images += other.images
        self.labelled += other.labelled
        self.right += other.right

    def accuracy(self) -> dict[str, float]:
        """Over the images whose label is a candidate; empty when there is none."""
        return {"accuracy": self.right / self.labelled} if self.labelled else {}


@dataclass
class Review:
    """What became of the predictions of earlier calls."""

    chunks: Chunks
    """How the run is divided now."""
    proven: int = 0
    """Number of predictions that are known to be of the present tokens."""
    outdated: int = 0
    """Number of predictions of other tokens."""
    unknown: int = 0
    """Number of predictions that do not say of what tokens they are."""
    _current: dict[int, Tally] = field(default_factory=lambda: defaultdict(Tally))
    """Of each chunk, its predictions that may be kept."""

    def look_at(self, records: Iterable[Record], are_current: AreCurrent) -> None:
        """Count these predictions, one block at a time."""
        for block in _blocks(records):
            for record, current in zip(block, are_current(block), strict=True):
                self.proven += current is True
                self.outdated += current is False
                self.unknown += current is None
                if current is not False:
                    self._current[record["index"] // self.chunks.size].add([record])

    @property
    def count(self) -> int:
        """Number of predictions."""
        return self.proven + self.outdated + self.unknown

    @property
    def is_complete(self) -> bool:
        """Whether there is a prediction of every image, and all may be kept."""
        return not self.outdated and self.count == self.chunks.items and len(self.kept) == self.chunks.count

    @property
    def kept(self) -> set[int]:
        """Numbers of the chunks that need not be computed again: all their predictions may be kept."""
        sizes = {number: tally.images for number, tally in self._current.items() if number < self.chunks.count}
        return {number for number, images in sizes.items() if images == len(self.chunks.items_of(number))}

    def tally(self, numbers: Iterable[int]) -> Tally:
        """Of the predictions of these chunks."""
        total = Tally()
        for number in numbers:
            total.join(self._current[number])
        return total

    def check_source(self, where: str, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
        """What the run's source was called, where it is called otherwise now; None where it is the same.

        Raises: UsageError when most predictions are not of the same tokens: then it is another source.
        """
        there, here = source(recorded), source(asked)
        if there == here or not self.count:
            return None
        others = self.outdated + self.unknown
        if others > self.proven:
            why = f"tokens.source: {there} there, {here} here; {others} of {self.count} images differ"
            raise another_run(where, why)
        return str(there)


def another_run(where: str, why: str) -> UsageError:
    """The error for a folder with the run of another request."""
    fix = "repeat that run's options to continue it, name another --out, or replace it with --overwrite"
    return UsageError(f"'{where}' holds another run", why, fix)


def _blocks(records: Iterable[Record]) -> Iterator[list[Record]]:
    remaining = iter(records)
    while block := list(islice(remaining, ROWS_PER_BLOCK)):
        yield block
