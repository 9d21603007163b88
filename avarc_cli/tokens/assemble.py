"""Finished units to a cache, and a part of a cache back to units."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avarc_cli.data.datasets import ImageSet
from avarc_cli.errors import AvarcError
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.header import CacheHeader, Share
from avarc_cli.tokens.write import write_whole_cache
from avarc_cli.work.chunks import Part, Parts, Unreadable


@dataclass(frozen=True)
class Assembled:
    """What a cache holds: number of images, (name, reason) of those left out, and how many units are missing."""

    images: int
    unreadable: list[tuple[str, str]]
    missing: int = 0


def pack(parts: Parts, images: ImageSet, header: CacheHeader, batch_size: int, out: Path) -> Assembled:
    """The finished units become the cache `out`, or a part of it while some are missing; then the folder goes.

    A part without a readable image stays a folder.

    Raises: AvarcError when no image at all is readable, or a part is damaged; OSError.
    """
    numbers = sorted(parts.finished())
    rows_of: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    unreadable: list[Unreadable] = []
    for part in parts.stream(numbers):
        rows_of.append(part.rows)
        unreadable += part.unreadable
    rows = np.concatenate(rows_of)
    listed = [(bad.name, bad.reason) for bad in unreadable]
    missing = parts.count - len(numbers)
    if not len(rows):
        if not missing:
            parts.remove()  # the next run shall look at the images again
            name, reason = listed[0]
            what = f"none of the {len(images)} images of '{images.source}' is readable"
            raise AvarcError(what, f"the first is '{name}': {reason}")
        return Assembled(0, listed, missing)
    indices = tuple(bad.index for bad in unreadable)
    share = Share(unit=parts.unit, batch_size=batch_size, units=tuple(numbers), unreadable=indices)
    write_whole_cache(
        out,
        header,
        labels=images.labels[rows],
        names=[images.names[row] for row in rows],
        blocks=((part.tokens, part.latents) for part in parts.stream(numbers)),
        unreadable=listed,
        size=parts.size(),
        share=share if missing else None,
        rows=rows if missing else None,
    )
    parts.remove()
    return Assembled(len(rows), listed, missing)


def unpack(cache: TokenCache, parts: Parts) -> None:
    """The units of a part of a cache go to the folder, which was opened for the same request; then the file goes.

    Raises: CacheError when the file cannot be read; OSError.
    """
    assert cache.share is not None and cache.rows is not None, "a whole cache has no units"
    left_out = list(zip(cache.share.unreadable, cache.unreadable, strict=True))
    for number in cache.share.units:
        unit = parts.images(number)
        start, stop = np.searchsorted(cache.rows, (unit.start, unit.stop))
        blocks = list(cache.blocks(int(start), int(stop)))
        bad = tuple(Unreadable(index, name, why) for index, (name, why) in left_out if index in unit)
        parts.save(number, Part(cache.rows[start:stop], *_join(blocks, parts), bad))
    os.unlink(cache.path)


def _join(blocks: Sequence[tuple[np.ndarray, np.ndarray | None]], parts: Parts) -> tuple[np.ndarray, np.ndarray | None]:
    tokens = np.concatenate([np.empty((0, *parts.sample_shape), dtype=np.uint16), *(block[0] for block in blocks)])
    if not parts.latents:
        return tokens, None
    latents = [block[1] for block in blocks if block[1] is not None]
    return tokens, np.concatenate(latents) if latents else np.empty((0, 0, 0, 0), dtype=np.float16)
