"""Finished chunks to a cache, and a partial cache back to chunks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avarc_cli.data.datasets import ImageSet
from avarc_cli.errors import none_readable
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.encoded import EncodedChunk, Unreadable
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
    for chunk in folder.stream(numbers):
        rows_of.append(chunk.rows)
        unreadable += chunk.unreadable
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
        names=[images.names[row] for row in rows],
        unreadable=done.unreadable,
        partial=None if complete else partial,
        rows=None if complete else rows,
    )
    blocks = ((chunk.tokens, chunk.latents) for chunk in folder.stream(numbers))
    write(out, content, blocks, size=folder.size())
    chunks.delete(folder.path)
    return done


def disassemble(cache: TokenCache, folder: ChunkFolder[EncodedChunk]) -> None:
    """Write the chunks of a partial cache to the folder of the same request, and delete the cache.

    Raises: CacheError when the file cannot be read; OSError.
    """
    assert cache.partial is not None and cache.rows is not None, "a complete cache does not record its chunks"
    unreadable = list(zip(cache.partial.unreadable, cache.unreadable, strict=True))
    for number in cache.partial.chunks:
        items = folder.chunks.items_of(number)
        start, stop = np.searchsorted(cache.rows, (items.start, items.stop)).tolist()
        tokens, latents = _join(list(cache.blocks(start, stop)), cache.header)
        bad = tuple(Unreadable(index, name, why) for index, (name, why) in unreadable if index in items)
        folder.save(number, EncodedChunk(cache.rows[start:stop], tokens, latents, bad))
    os.unlink(cache.path)


def _join(blocks: Sequence[Block], header: CacheHeader) -> Block:
    nothing = np.empty((0, header.samples, header.layout.num_tokens), dtype=np.uint16)
    tokens = np.concatenate([nothing, *(block[0] for block in blocks)])
    if not header.latents:
        return tokens, None
    latents = [block[1] for block in blocks if block[1] is not None]
    return tokens, np.concatenate(latents) if latents else np.empty((0, 0, 0, 0), dtype=np.float16)
