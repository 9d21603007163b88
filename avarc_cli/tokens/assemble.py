"""Finished chunks to a cache, and a partial cache back to chunks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avarc_cli.data.datasets import ImageSet
from avarc_cli.errors import CacheError, none_readable
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.encoded import EncodedChunk, Unreadable
from avarc_cli.tokens.fingerprints import Fingerprints
from avarc_cli.tokens.header import CacheHeader, Partial
from avarc_cli.tokens.request import Request
from avarc_cli.tokens.write import Block, Content, write
from avarc_cli.work import chunks
from avarc_cli.work.chunks import ChunkFolder


@dataclass(frozen=True)
class Assembled:
    """What finished chunks hold."""

    images: int
    """Number of readable images."""
    unreadable: list[tuple[str, str]]
    """(name, reason) of the others."""


def summarize(folder: ChunkFolder[EncodedChunk], numbers: Sequence[int]) -> Assembled:
    """Count what these chunks hold. Raises: AvarcError when one became corrupt."""
    images, unreadable = 0, []
    for chunk in folder.stream(numbers):
        images += len(chunk.rows)
        unreadable += [(bad.name, bad.reason) for bad in chunk.unreadable]
    return Assembled(images, unreadable)


def assemble(folder: ChunkFolder[EncodedChunk], images: ImageSet, request: Request, out: Path) -> Assembled:
    """Write the finished chunks to the cache `out`, a partial one if some are missing, and delete the folder.

    A partial cache without a readable image is not written; then the folder stays.

    Raises: AvarcError when no image at all is readable, or a chunk became corrupt; OSError.
    """
    numbers = sorted(folder.finished())
    rows_of: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    unreadable: list[Unreadable] = []
    fingerprints: list[Fingerprints] = []
    for chunk in folder.stream(numbers):
        rows_of.append(chunk.rows)
        unreadable += chunk.unreadable
        fingerprints.append(chunk.fingerprints)
    rows = np.concatenate(rows_of)
    done = Assembled(len(rows), [(bad.name, bad.reason) for bad in unreadable])
    complete = len(numbers) == folder.chunks.count
    if not len(rows) and complete:
        chunks.delete(folder.path)  # the next run tries to read the images again
        raise none_readable(images.source, done.unreadable)
    if not len(rows):
        return done
    partial = Partial(
        chunk_size=request.chunk_size,
        batch_size=request.batch_size,
        chunks=tuple(numbers),
        unreadable=tuple(bad.index for bad in unreadable),
    )
    content = Content(
        header=request.header,
        labels=images.labels[rows],
        names=images.names if len(rows) == len(images) else [images.names[row] for row in rows],
        unreadable=done.unreadable,
        fingerprints=Fingerprints.join(fingerprints),
        partial=None if complete else partial,
        rows=None if complete else rows,
    )
    blocks = ((chunk.tokens, chunk.latents) for chunk in folder.stream(numbers))
    write(out, content, blocks, size=folder.size())
    chunks.delete(folder.path)
    return done


def disassemble(
    cache: TokenCache,
    folder: ChunkFolder[EncodedChunk],
    images: ImageSet,
    fingerprints: Fingerprints,
    without: Collection[int] = (),
) -> None:
    """Write the chunks of a cache to the folder of the same request.

    Args:
        images: that the cache was made of.
        fingerprints: of the cache's images, with the present stamps of their files.
        without: numbers of chunks that are not written.
    Raises: CacheError when the file cannot be read; OSError.
    """
    rows, unreadable = _rows(cache, images)
    encoded = cache.encoded_rows
    numbers = range(folder.chunks.count) if cache.partial is None else cache.partial.chunks
    for number in (number for number in numbers if number not in without):
        items = folder.chunks.items_of(number)
        start, stop = np.searchsorted(rows, (items.start, items.stop)).tolist()
        first, last = np.searchsorted(encoded, (items.start, items.stop)).tolist()
        tokens, latents = _join(list(cache.blocks(start, stop)), cache.header)
        bad = tuple(entry for entry in unreadable if entry.index in items)
        of_chunk = fingerprints.take(slice(first, last))
        folder.save(number, EncodedChunk(rows[start:stop], tokens, latents, bad, of_chunk))


def _rows(cache: TokenCache, images: ImageSet) -> tuple[np.ndarray, list[Unreadable]]:
    """Indices in the full set of a cache's images, (N,) int64, and its unreadable ones. Raises: CacheError."""
    if cache.partial is not None and cache.rows is not None:
        bad = zip(cache.partial.unreadable, cache.unreadable, strict=True)
        return cache.rows, [Unreadable(index, name, why) for index, (name, why) in bad]
    rows: list[int] = []
    unreadable: list[Unreadable] = []
    for index, name in enumerate(images.names):  # the cache has both kinds in the order of the images
        if len(rows) < len(cache) and cache.paths[len(rows)] == name:
            rows.append(index)
        elif len(unreadable) < len(cache.unreadable):
            unreadable.append(Unreadable(index, *cache.unreadable[len(unreadable)]))
        else:
            raise CacheError(f"'{cache.path}' is corrupt", f"it lacks '{name}'", "encode again with --overwrite")
    return np.array(rows, dtype=np.int64), unreadable


def _join(blocks: Sequence[Block], header: CacheHeader) -> Block:
    tokens = np.concatenate([header.form.none(), *(block[0] for block in blocks)])
    if not header.latents:
        return tokens, None
    latents = [block[1] for block in blocks if block[1] is not None]
    return tokens, np.concatenate(latents) if latents else np.empty((0, 0, 0, 0), dtype=np.float16)
