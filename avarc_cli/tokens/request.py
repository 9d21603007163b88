"""What an encoding run is asked for, and the grain in which it works."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import CacheError, UsageError
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.header import CacheHeader

if TYPE_CHECKING:
    from avarc_cli.likelihood import Tokenizer

MAX_VOCABULARY = 2**16  # tokens are stored as uint16
MOST_UNITS = 1024  # files in one folder
PIXELS_AT_ONCE = 2**20  # 16 images of 256 x 256
LARGEST_BATCH = 256
HASHED_AT_ONCE = 2**16


@dataclass(frozen=True)
class Request:
    """The header of the cache to make, and the grain: images a unit, and images the tokenizer reads at once.

    The grain decides about roundings, so all that is made for one cache shares it.
    """

    header: CacheHeader
    unit: int
    batch_size: int
    batch_chosen: bool = False  # by the user

    @classmethod
    def make(cls, header: CacheHeader, batch_size: int | None, unit: int | None) -> Request:
        """The request, with defaults for None."""
        size = batch_size or default_batch(header.image_size)
        return cls(header, unit or default_unit(header.images, size), size, batch_size is not None)

    @classmethod
    def of(cls, part: TokenCache) -> Request:
        """The request that a part of a cache was made for."""
        assert part.share is not None, "a whole cache does not tell"
        return cls(part.header, part.share.unit, part.share.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return self.header.to_dict() | {"unit": self.unit, "batch_size": self.batch_size}

    def going_on(self, recorded: Mapping[str, Any]) -> Request | None:
        """This request in the grain of recorded work; None when that was for something else."""
        unit, batch_size = recorded.get("unit"), recorded.get("batch_size")
        if not (isinstance(unit, int) and isinstance(batch_size, int) and min(unit, batch_size) > 0):
            return None
        same = replace(self, unit=unit, batch_size=batch_size)
        return same if same.to_dict() == recorded else None


def default_batch(image_size: int) -> int:
    """Images the tokenizer reads at once: of about as many pixels in all, whatever their size."""
    return max(1, min(LARGEST_BATCH, PIXELS_AT_ONCE // image_size**2))


def default_unit(images: int, batch_size: int) -> int:
    """Images a unit: whole batches, as few as give at most MOST_UNITS units."""
    return batch_size * -(-images // (MOST_UNITS * batch_size))


def describe(
    images: ImageSet,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    *,
    samples: int,
    sigma: float,
    seed: int,
    latents: bool,
) -> CacheHeader:
    """The header of the cache.

    Raises: CacheError for a vocabulary beyond 16 bits; UsageError for pixels of another size than the tokenizer reads.
    """
    if tokenizer.vocab_size > MAX_VOCABULARY:
        why = f"its vocabulary has {tokenizer.vocab_size} entries, a cache holds tokens below {MAX_VOCABULARY}"
        raise CacheError(f"tokens of {tokenizer.name} do not fit a token cache", why)
    if preprocess.size != tokenizer.image_size:
        why = f"it gives {preprocess.size} pixels a side, {tokenizer.name} reads {tokenizer.image_size}"
        raise UsageError(f"preprocessing '{preprocess}' does not fit the tokenizer", why)
    return CacheHeader(
        tokenizer=tokenizer.name,
        tokenizer_file=Path(tokenizer.file).name,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        patch_nums=tokenizer.layout.sides,
        image_size=tokenizer.image_size,
        preprocess=str(preprocess),
        precision=tokenizer.precision,
        samples=samples,
        sigma=float(sigma) if samples > 1 else 0.0,  # without neighbours neither plays a part
        seed=seed if samples > 1 else 0,
        latents=latents,
        class_names=images.class_names,
        dataset=images.dataset,
        source=images.source,
        images=len(images),
        images_sha256=_digest(images),
    )


def _digest(images: ImageSet) -> str:
    """sha256 of the JSON text [names, labels], a million of which need not be in memory at once."""
    digest = hashlib.sha256()
    labels = (images.labels[start : start + HASHED_AT_ONCE].tolist() for start in _starts(len(images)))
    names = (list(images.names[start : start + HASHED_AT_ONCE]) for start in _starts(len(images)))
    for opening, lists in (("[[", names), ("], [", labels)):
        for block in lists:
            digest.update((opening + json.dumps(block)[1:-1]).encode())
            opening = ", "
    digest.update(b"]]")
    return digest.hexdigest()


def _starts(count: int) -> Iterable[int]:
    return range(0, count, HASHED_AT_ONCE)
