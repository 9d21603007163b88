"""Several token caches to one: the shards of one request, or whole caches of different images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from avarc_cli.errors import AvarcError, CacheError, UsageError, describe_differences
from avarc_cli.storage import remove_leftovers
from avarc_cli.tokens.cache import TokenCache, read
from avarc_cli.tokens.header import CacheHeader, Share
from avarc_cli.tokens.verify import verify
from avarc_cli.tokens.write import Block, write_whole_cache
from avarc_cli.work.locks import only_writer

# What caches of different images need not share.
OF_THE_IMAGES = frozenset({"class_names", "dataset", "images", "images_sha256"})
# What people call things, which may differ between machines; the digests beside them may not.
NAMES = frozenset({"source", "tokenizer", "tokenizer_file"})


@dataclass(frozen=True)
class _Piece:
    """Rows of a source that follow each other in the merged cache."""

    cache: TokenCache
    start: int
    stop: int


@dataclass(frozen=True)
class Merged:
    """What was written. images: how many; shards: whether the sources were parts of one request."""

    path: Path
    images: int
    shards: bool
    unreadable: list[tuple[str, str]]


def merge(sources: Sequence[Path], out: Path, *, overwrite: bool = False) -> Merged:
    """Join token caches, without holding more than a block of tokens in memory.

    Parts of one request give the bytes of a run that was never divided. Whole caches of one tokenizer, preprocessing
    and noise are put one after the other, with the union of their class names.

    Raises: UsageError for fewer than two sources or one named twice; CacheError when they do not go together, with
        both values, when one is damaged, when shards are missing or overlap, when two images have one name, or when
        `out` exists and `overwrite` is not set; AvarcError when `out` cannot be written.
    """
    if len(sources) < 2 or len({source.resolve() for source in sources}) < len(sources):
        raise UsageError("there is nothing to join", "it takes two or more different caches")
    if out.exists() and not overwrite:
        raise CacheError(f"'{out}' exists", fix="name another file, or add --overwrite")
    if any(out.resolve() == source.resolve() for source in sources):
        raise UsageError(f"'{out}' is one of the caches to join", fix="name another file with --out")
    caches = [read(source, parts_too=True) for source in sources]
    shards = [cache.share is not None for cache in caches]
    if any(shards) and not all(shards):
        part, whole = caches[shards.index(True)].path, caches[shards.index(False)].path
        raise CacheError("a part of a cache and a whole one cannot be joined", f"'{part}' is a part, '{whole}' is not")
    for cache in caches:
        verify(cache).check(cache.path)  # or the damage would get checksums of its own
    header, pieces, unreadable = _of_shards(caches) if all(shards) else _of_images(caches)
    try:
        with only_writer(out):
            remove_leftovers(out.parent, lambda name: name == out.name)
            _write(out, header, pieces, unreadable)
    except OSError as error:
        fix = "free some space or name another place"
        raise AvarcError(f"cannot write '{out}'", error.strerror or str(error), fix) from error
    return Merged(out, sum(piece.stop - piece.start for piece in pieces), all(shards), unreadable)


def _of_shards(caches: Sequence[TokenCache]) -> tuple[CacheHeader, list[_Piece], list[tuple[str, str]]]:
    first = caches[0]
    for cache in caches[1:]:
        _check_equal(first, cache, except_for=NAMES)
    owner: dict[int, TokenCache] = {}
    for cache in caches:
        for number in _share(cache).units:
            if number in owner:
                why = f"unit {number} is in '{owner[number].path}' and in '{cache.path}'"
                raise CacheError("the shards overlap", why, "name each shard once")
            owner[number] = cache
    unit, count = _share(first).unit, _share(first).count(first.header.images)
    missing = sorted(set(range(count)) - owner.keys())
    if missing:
        why = f"{len(missing)} of {count} units are in none of them, the first is unit {missing[0]}"
        raise CacheError("a shard is missing", why, "name the caches of all shards")
    pieces = []
    for number in range(count):
        cache = owner[number]
        assert cache.rows is not None
        start, stop = np.searchsorted(cache.rows, (number * unit, (number + 1) * unit)).tolist()
        pieces.append(_Piece(cache, start, stop))
    left_out = [
        (index, bad) for cache in caches for index, bad in zip(_share(cache).unreadable, cache.unreadable, strict=True)
    ]
    return first.header, pieces, [bad for _, bad in sorted(left_out)]


def _of_images(caches: Sequence[TokenCache]) -> tuple[CacheHeader, list[_Piece], list[tuple[str, str]]]:
    first = caches[0]
    seen: dict[str, Path] = {}
    for cache in caches:
        _check_equal(first, cache, except_for=NAMES | OF_THE_IMAGES)
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
    return header, pieces, [bad for cache in caches for bad in cache.unreadable]


def _check_equal(first: TokenCache, other: TokenCache, *, except_for: frozenset[str]) -> None:
    """Raises: CacheError with both values unless what decides about the tokens is the same."""
    facts = [_facts(cache, except_for) for cache in (first, other)]
    if facts[0] != facts[1]:
        files = f"'{first.path}' (there) and '{other.path}' (here)"
        raise CacheError(
            f"{files} do not go together", describe_differences(*facts), "join caches of one request or tokenizer"
        )


def _facts(cache: TokenCache, except_for: frozenset[str]) -> dict[str, Any]:
    facts = {name: value for name, value in cache.header.to_dict().items() if name not in except_for}
    if cache.share is not None:
        facts |= {"unit": cache.share.unit, "batch_size": cache.share.batch_size}
    return facts


def _share(cache: TokenCache) -> Share:
    assert cache.share is not None, "a whole cache has no share"
    return cache.share


def _write(out: Path, header: CacheHeader, pieces: Sequence[_Piece], unreadable: list[tuple[str, str]]) -> None:
    names = [name for piece in pieces for name in piece.cache.paths[piece.start : piece.stop]]
    labels = np.concatenate([_labels(piece, header.class_names) for piece in pieces])
    write_whole_cache(
        out,
        header,
        labels=labels,
        names=names,
        blocks=_blocks(pieces),
        unreadable=unreadable,
        size=sum(cache.path.stat().st_size for cache in {id(piece.cache): piece.cache for piece in pieces}.values()),
    )


def _labels(piece: _Piece, class_names: Sequence[str]) -> np.ndarray:
    index = {name: number for number, name in enumerate(class_names)}
    new = np.array([*(index[name] for name in piece.cache.header.class_names), -1], dtype=np.int32)  # last answers -1
    labels: np.ndarray = new[piece.cache.labels[piece.start : piece.stop]]
    return labels


def _blocks(pieces: Sequence[_Piece]) -> Iterator[Block]:
    for piece in pieces:
        yield from piece.cache.blocks(piece.start, piece.stop)
