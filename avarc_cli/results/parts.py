"""The finished chunks of a run that is not finished, in its folder `parts` (`work.chunks`).

    parts/request.json    how the run is divided, and what its metrics need beside the predictions
    parts/000012.npz      `lines` (uint8): the lines of predictions of chunk 12; `seconds` (float64): spent scoring

Files of single images are in the run folder already, as they are in a finished run; each was written before its chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from avarc_cli.errors import AvarcError
from avarc_cli.results.lines import Record, from_lines, to_lines
from avarc_cli.results.resume import AreCurrent
from avarc_cli.tokens.request import default_chunk_size
from avarc_cli.work.chunks import ChunkFolder, Chunks, recorded_request


@dataclass(frozen=True)
class ScoredChunk:
    """The predictions of a chunk of images."""

    records: list[Record]
    """Their lines, in order."""
    seconds: float
    """Spent scoring."""


@dataclass(frozen=True)
class ScoredFormat:
    """The files of chunks (`work.chunks.ChunkFormat`)."""

    are_current: AreCurrent | None = None
    """Predictions that are not of the present tokens count as corrupt; None to read any."""

    def to_arrays(self, result: ScoredChunk) -> dict[str, np.ndarray]:
        """`lines` and `seconds`."""
        lines = np.frombuffer(to_lines(result.records), dtype=np.uint8)
        return {"lines": lines, "seconds": np.array(result.seconds)}

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> ScoredChunk:
        """The predictions of these images. Raises: one of work.chunks.CORRUPT."""
        lines = arrays["lines"].tobytes().splitlines()
        try:
            records = list(from_lines(lines, "the chunk"))
        except AvarcError as error:
            raise ValueError(error.why) from error
        if [record["index"] for record in records] != list(items):
            raise ValueError("it is of other images")
        if self.are_current and False in self.are_current(records):
            raise ValueError("it is of other tokens")
        return ScoredChunk(records, float(arrays["seconds"]))


@dataclass(frozen=True)
class Division:
    """How a run is divided, and what its metrics need beside the predictions."""

    chunks: Chunks
    """Of its images: whole groups of images that are scored together."""
    candidates: int
    """Number of candidates."""
    about: Mapping[str, Any]
    """What metrics.json says of the request."""

    @classmethod
    def of(cls, images: int, group: int, candidates: int, about: Mapping[str, Any]) -> Division:
        """The division of this many images into at most `MAX_CHUNKS` chunks, whatever computes them."""
        return cls(Chunks(images, default_chunk_size(images, group)), candidates, about)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: what request.json holds."""
        numbers = {"images": self.chunks.items, "chunk_size": self.chunks.size, "candidates": self.candidates}
        return numbers | {"about": dict(self.about)}

    @classmethod
    def recorded(cls, folder: Path) -> Division | None:
        """The division of a folder of chunks; None where there is none."""
        there = recorded_request(folder) or {}
        images, size, candidates = (there.get(name) for name in ("images", "chunk_size", "candidates"))
        about = there.get("about")
        if not (isinstance(images, int) and isinstance(size, int) and isinstance(candidates, int)):
            return None
        if min(images, size, candidates) < 1 or not isinstance(about, dict):
            return None
        return cls(Chunks(images, size), candidates, about)


def fill(
    folder: ChunkFolder[ScoredChunk], records: Iterable[Record], kept: set[int], seconds_each: float
) -> Iterator[int]:
    """Save these chunks of predictions, which are in the order of their images; their numbers.

    Args:
        seconds_each: spent scoring an image.
    """
    for number, group in groupby(records, lambda record: int(record["index"] // folder.chunks.size)):
        if number not in kept:
            continue
        chunk = list(group)
        if [record["index"] for record in chunk] == list(folder.chunks.items_of(number)):
            folder.save(number, ScoredChunk(chunk, seconds_each * len(chunk)))
            yield number
