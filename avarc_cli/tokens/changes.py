"""Which images changed since they were encoded.

Where the stamp of its file is the same, an image counts as unchanged. Where it differs, the image is read, and its
digest decides. A file that changes while it is being encoded is noticed later: its stamp is taken before it is read.

A source may be spelled differently, or lie elsewhere, when work is continued: then, too, the images decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.image_source import digest_of
from avarc_cli.errors import CacheError
from avarc_cli.progress import Notify
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.encoded import EncodedChunk
from avarc_cli.tokens.fingerprints import Fingerprints
from avarc_cli.work.chunks import CORRUPT, ChunkFolder, Chunks

SAME_SET = 0.5
"""Fraction of the images that must be the same where the source has another name; else it is another set of images."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """What is known of M images that were encoded."""

    rows: np.ndarray
    """Their indices in the full set, (M,) int64."""
    fingerprints: Fingerprints
    """Theirs."""
    sources: frozenset[str]
    """What was encoded, as users wrote it."""

    @classmethod
    def join(cls, parts: Iterable[Recorded]) -> Recorded:
        """What all parts know."""
        parts = list(parts)
        rows = np.concatenate([np.empty(0, dtype=np.int64), *(part.rows for part in parts)])
        fingerprints = Fingerprints.join([part.fingerprints for part in parts])
        return cls(rows, fingerprints, frozenset().union(*(part.sources for part in parts)))

    def of_chunks(self, chunks: Chunks, numbers: range) -> Recorded:
        """Of the images of these chunks."""
        number = self.rows // chunks.size
        mine = (number >= numbers.start) & (number < numbers.stop)
        return Recorded(self.rows[mine], self.fingerprints.take(mine), self.sources)

    def is_current(self, images: ImageSet, stamps_N2: np.ndarray) -> bool:
        """Whether no image needs to be read to know that it is the same; those of old caches are believed to be."""
        known = self.fingerprints.recorded
        same = (self.fingerprints.stamps == stamps_N2[self.rows]).all(axis=1)
        return bool(same.all() if self.sources - {images.source} else (same | ~known).all())


def of_cache(cache: TokenCache) -> Recorded:
    """What a cache records. Raises: CacheError when it is corrupt."""
    return Recorded(cache.encoded_rows, cache.fingerprints(), frozenset({cache.header.source}))


def of_chunks(folder: ChunkFolder[EncodedChunk], numbers: Iterable[int], source: str) -> Recorded:
    """What finished chunks record; corrupt ones are left out, since they are computed again."""
    parts = []
    for number in numbers:
        items = folder.chunks.items_of(number)
        try:
            found = Fingerprints.from_arrays(folder.read(number, ("stamps", "digests")), len(items))
        except CORRUPT:
            continue
        parts.append(Recorded(np.array(items, dtype=np.int64), found, frozenset()))
    return Recorded.join([*parts, Recorded(np.empty(0, np.int64), Fingerprints.not_recorded(0), frozenset({source}))])


@dataclass(frozen=True, eq=False)
class Changes:
    """What became of images since they were encoded."""

    changed: frozenset[int]
    """Rows of the images that are others now."""
    touched: frozenset[int]
    """Rows of those whose file has another size or time, but that are the same."""
    unknown: int
    """Number of images of which no fingerprint is recorded."""
    spellings: frozenset[str]
    """What was encoded, where it was written in another way than now."""

    def stamp(self, recorded: Fingerprints, rows: np.ndarray, stamps_N2: np.ndarray) -> Fingerprints:
        """Fingerprints of these images, with the present stamps of those that are touched."""
        return recorded.stamped(np.isin(rows, list(self.touched)), stamps_N2[rows])

    def report(self, out: Path, say: Notify) -> None:
        """Tell the user."""
        if self.spellings:
            say(f"'{out}' was begun with '{min(self.spellings)}': these are the same images")
        if self.unknown:
            by = f"an earlier version encoded {count(self.unknown)} of '{out}' without recording sizes and times"
            say(f"{by}: changes since cannot be detected")
        if self.touched:
            say(f"{count(self.touched)}: the file has another size or time, but the image is the same; tokens are kept")
        if self.changed:
            say(f"{count(self.changed)} changed since; encoding {'it' if len(self.changed) == 1 else 'them'} again")


def find_changes(images: ImageSet, stamps_N2: np.ndarray, recorded: Recorded, out: Path) -> Changes:
    """Compare images with what was recorded of them. Those with another stamp are read.

    Args:
        stamps_N2: present stamps of all images (`ImageSource.stamps`).
        out: what was made of them, for messages.
    Raises: CacheError when the source has another name, and most images are not the recorded ones, or nothing is
        recorded of them.
    """
    known = recorded.fingerprints.recorded
    differs = known & (recorded.fingerprints.stamps != stamps_N2[recorded.rows]).any(axis=1)
    changed: set[int] = set()
    touched: set[int] = set()
    for place in np.flatnonzero(differs).tolist():
        row = int(recorded.rows[place])
        same = digest_of(images.encoded, row) == recorded.fingerprints.digests[place].tobytes()
        (touched if same else changed).add(row)
    spellings = recorded.sources - {images.source}
    compared = int(known.sum())
    is_other = not compared or len(changed) > (1 - SAME_SET) * compared
    if spellings and len(recorded.rows) and is_other:
        why = f"source: {min(spellings)} there, {images.source} here"
        why += f"; {len(changed)} of {count(compared)} differ" if compared else ""
        raise CacheError(f"'{out}' was made of other images", why, "name another file, or add --overwrite")
    return Changes(frozenset(changed), frozenset(touched), len(known) - compared, spellings)


def count(images: int | frozenset[int]) -> str:
    """Number of images in words: "1 image", "1,000 images"."""
    number = images if isinstance(images, int) else len(images)
    return f"{number:,} image{'' if number == 1 else 's'}"
