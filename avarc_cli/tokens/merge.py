"""Several token caches to one: partial caches of one request, or complete caches of different images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from avarc_cli import outputs
from avarc_cli.data.labels import UNKNOWN
from avarc_cli.errors import AvarcError, CacheError, UsageError, describe_differences
from avarc_cli.outputs import check_output
from avarc_cli.tokens.cache import TokenCache, chunk_folder, read
from avarc_cli.tokens.fingerprints import Fingerprints
from avarc_cli.tokens.header import CacheHeader, Partial, identity
from avarc_cli.tokens.verify import read_verified
from avarc_cli.tokens.write import Block, Content, write
from avarc_cli.words import counted
from avarc_cli.work.chunks import recorded_request
from avarc_cli.work.locks import only_writer

OF_THE_IMAGES = frozenset({"class_names", "dataset", "images", "images_sha256"})
"""Header fields that may differ between caches of different images."""


@dataclass(frozen=True)
class _Piece:
    """Consecutive rows of a source, which are consecutive in the merged cache."""

    cache: TokenCache
    start: int
    stop: int


@dataclass(frozen=True)
class _Plan:
    """What the merged cache holds."""

    header: CacheHeader
    pieces: list[_Piece]
    unreadable: list[tuple[str, str]]
    fingerprints: Fingerprints | None = None  # of one set of images only


@dataclass(frozen=True)
class Merged:
    """What was written."""

    path: Path
    """The new cache."""
    images: int
    """Number of images in it."""
    shards: bool
    """Whether the sources were partial caches of one request."""
    unreadable: list[tuple[str, str]]
    """(name, reason) of the images that could not be read."""
    empty: list[Path]
    """Sources that do not exist because their shard had nothing to encode."""


def merge(sources: Sequence[Path], out: Path, *, overwrite: bool = False) -> Merged:
    """Join token caches. One block of tokens is in memory at a time.

    Partial caches of one request give the bytes of a run that was not divided. Complete caches of one tokenizer,
    preprocessing and noise follow each other, with the union of their class names. Caches of format 1 and 2 can be
    mixed; the result has the current format. With more shards than chunks some shards have nothing to encode and make
    no cache; naming these is allowed.

    Raises: UsageError for fewer than two sources or one named twice, and as `outputs.check_output`; CacheError when
        the sources do not go together, with both values, when one is corrupt, when chunks are missing or in two
        sources, or when two images have one name; AvarcError when `out` cannot be written.
    """
    if len(sources) < 2 or len({os.path.realpath(source) for source in sources}) < len(sources):
        raise UsageError("there is nothing to join", "it takes two or more different caches")
    check_output(out, outputs.CACHE, overwrite=overwrite, inputs=sources)
    # Corrupt tokens would get matching checksums in the merged cache.
    caches = [read_verified(source, allow_partial=True) for source in sources if source.exists()]
    empty = [source for source in sources if not source.exists()]
    for source in empty:
        if not caches or not _is_empty_shard(source, caches[0]):
            read(source)  # raises the error for a cache that does not exist
    partial = [cache.partial is not None for cache in caches]
    if any(partial) and not all(partial):
        why = f"'{caches[partial.index(True)].path}' is partial, '{caches[partial.index(False)].path}' is complete"
        raise CacheError("a partial cache and a complete one cannot be joined", why)
    plan = _of_shards(caches) if all(partial) else _of_images(caches) if len(caches) > 1 else _of_one(caches[0])
    try:
        with only_writer(out):
            _write(out, plan)
    except OSError as error:
        fix = "free some space or name another place"
        raise AvarcError(f"cannot write '{out}'", error.strerror or str(error), fix) from error
    images = sum(piece.stop - piece.start for piece in plan.pieces)
    return Merged(out, images, all(partial) or bool(empty), plan.unreadable, empty)


def _is_empty_shard(source: Path, other: TokenCache) -> bool:
    """Whether a cache does not exist because its shard had no chunk: the request of `other` is all there is."""
    folder = chunk_folder(source)
    recorded = recorded_request(folder)
    if recorded is None or any(folder.glob("*.npz")):
        return False
    asked = identity(other.header.to_dict())
    # A request also names chunks and batches, which a complete cache does not.
    there = {name: value for name, value in identity(recorded).items() if name in asked}
    return not describe_differences(there, asked)


def _of_one(cache: TokenCache) -> _Plan:
    """The only cache beside empty shards, which has all images."""
    return _Plan(cache.header, [_Piece(cache, 0, len(cache))], list(cache.unreadable), cache.fingerprints())


def _of_shards(caches: Sequence[TokenCache]) -> _Plan:
    first = caches[0]
    for cache in caches[1:]:
        _check_equal(first, cache)
    owner = _owners(caches)
    size = _partial(first).chunk_size
    pieces = []
    for number, cache in sorted(owner.items()):
        assert cache.rows is not None
        start, stop = np.searchsorted(cache.rows, (number * size, (number + 1) * size)).tolist()
        pieces.append(_Piece(cache, start, stop))
    unreadable = [
        (index, bad)
        for cache in caches
        for index, bad in zip(_partial(cache).unreadable, cache.unreadable, strict=True)
    ]
    order = np.argsort(np.concatenate([cache.encoded_rows for cache in caches]))
    fingerprints = Fingerprints.join([cache.fingerprints() for cache in caches]).take(order)
    return _Plan(first.header, pieces, [bad for _, bad in sorted(unreadable)], fingerprints)


def _owners(caches: Sequence[TokenCache]) -> dict[int, TokenCache]:
    """Which cache has which chunk. Raises: CacheError unless each chunk is in one of them."""
    owner: dict[int, TokenCache] = {}
    for cache in caches:
        for number in _partial(cache).chunks:
            if number in owner:
                why = f"chunk {number} is in '{owner[number].path}' and in '{cache.path}'"
                raise CacheError("the shards overlap", why, "name each shard once")
            owner[number] = cache
    count = _partial(caches[0]).count(caches[0].header.images)
    missing = sorted(set(range(count)) - owner.keys())
    if missing:
        why = f"in none of them: {len(missing):,} of {counted(count, 'chunk')}, the first is chunk {missing[0]}"
        raise CacheError("a shard is missing", why, "name the caches of all shards")
    return owner


def _of_images(caches: Sequence[TokenCache]) -> _Plan:
    first = caches[0]
    seen: dict[str, Path] = {}
    for cache in caches:
        _check_equal(first, cache, except_for=OF_THE_IMAGES)
        for name in cache.paths:
            if name in seen:
                why = f"'{name}' is in '{seen[name]}' and in '{cache.path}'"
                raise CacheError("two images have the same name", why, "encode both folders with one command")
            seen[name] = cache.path
    headers = [cache.header for cache in caches]
    header = replace(
        first.header,
        class_names=tuple(sorted({name for each in headers for name in each.class_names})),
        dataset=first.header.dataset if len({each.dataset for each in headers}) == 1 else "",
        source=", ".join(each.source for each in headers),
        images=sum(each.images for each in headers),
        images_sha256=hashlib.sha256(json.dumps([each.images_sha256 for each in headers]).encode()).hexdigest(),
    )
    pieces = [_Piece(cache, 0, len(cache)) for cache in caches]
    return _Plan(header, pieces, [bad for cache in caches for bad in cache.unreadable])


def _check_equal(first: TokenCache, other: TokenCache, *, except_for: frozenset[str] = frozenset()) -> None:
    """Raises: CacheError with both values unless what decides about the tokens is the same."""
    if differences := describe_differences(*(_facts(cache, except_for) for cache in (first, other))):
        files = f"'{first.path}' (there) and '{other.path}' (here)"
        raise CacheError(f"{files} do not go together", differences, "join caches of one request or tokenizer")


def _facts(cache: TokenCache, except_for: frozenset[str]) -> dict[str, Any]:
    facts = {name: value for name, value in identity(cache.header.to_dict()).items() if name not in except_for}
    if cache.partial is not None:
        facts |= {"chunk_size": cache.partial.chunk_size, "batch_size": cache.partial.batch_size}
    return facts


def _partial(cache: TokenCache) -> Partial:
    assert cache.partial is not None, "it is a complete cache"
    return cache.partial


def _write(out: Path, plan: _Plan) -> None:
    sources = {piece.cache.path for piece in plan.pieces}
    content = Content(
        header=plan.header,
        labels=np.concatenate([_labels(piece, plan.header.class_names) for piece in plan.pieces]),
        names=[name for piece in plan.pieces for name in piece.cache.paths[piece.start : piece.stop]],
        unreadable=plan.unreadable,
        fingerprints=plan.fingerprints,
    )
    write(out, content, _blocks(plan.pieces), size=sum(path.stat().st_size for path in sources))


def _labels(piece: _Piece, class_names: Sequence[str]) -> np.ndarray:
    index = {name: number for number, name in enumerate(class_names)}
    new = [index[name] for name in piece.cache.header.class_names]
    labels: np.ndarray = np.array([*new, UNKNOWN], dtype=np.int32)[piece.cache.labels[piece.start : piece.stop]]
    return labels  # label -1, UNKNOWN, finds the last entry


def _blocks(pieces: Sequence[_Piece]) -> Iterator[Block]:
    for piece in pieces:
        yield from piece.cache.blocks(piece.start, piece.stop)
