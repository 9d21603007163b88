"""What an encoding run is to make, and in which chunks and batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.data.views import SINGLE
from avarc_cli.errors import CacheError, UsageError
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.header import POSTERIOR, SMOOTHING, CacheHeader, identity

if TYPE_CHECKING:
    from avarc_cli.tokenizer import Tokenizer

MAX_VOCABULARY = 2**16
"""Tokens are stored as uint16."""

MAX_CHUNKS = 1024
"""Files in a folder: continuing a run lists them, and reads each once at its end (docs/encoding.md)."""

PIXELS_PER_BATCH = 2**20
"""16 images of 256 x 256; a choice without measurement."""

MAX_BATCH = 256
"""For images below 64 pixels; a choice without measurement."""

IMAGES_PER_HASH = 2**16
"""Names that are in memory as JSON at once."""


@dataclass(frozen=True)
class Request:
    """What is to be made, and how it is divided.

    Chunks and batches decide about roundings, so all parts of a cache share them.
    """

    header: CacheHeader
    """Of the cache to make."""

    chunk_size: int
    """Images of each chunk."""

    batch_size: int
    """Images, or views of images, that the tokenizer reads at once."""

    batch_chosen: bool = False
    """Whether the user chose the batch size."""

    @classmethod
    def make(cls, header: CacheHeader, batch_size: int | None, chunk_size: int | None) -> Request:
        """The request, with defaults for None."""
        size = batch_size or default_batch_size(header.image_size)
        return cls(header, chunk_size or default_chunk_size(header.images, size), size, batch_size is not None)

    @classmethod
    def of(cls, cache: TokenCache) -> Request:
        """The request that a partial cache was made for."""
        assert cache.partial is not None, "a complete cache does not record its chunks"
        return cls(cache.header, cache.partial.chunk_size, cache.partial.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: what request.json holds."""
        return self.header.to_dict() | {"unit": self.chunk_size, "batch_size": self.batch_size}

    def continuing(self, recorded: Mapping[str, Any]) -> Request | None:
        """This request in the chunks and batches of recorded work; None if that work was for another request."""
        chunk_size, batch_size = recorded.get("unit"), recorded.get("batch_size")
        if not (isinstance(chunk_size, int) and isinstance(batch_size, int) and min(chunk_size, batch_size) > 0):
            return None
        continued = replace(self, chunk_size=chunk_size, batch_size=batch_size)
        return continued if identity(continued.to_dict()) == identity(recorded) else None


def default_batch_size(image_size: int) -> int:
    """Images the tokenizer reads at once: about as many pixels for images of any size."""
    return max(1, min(MAX_BATCH, PIXELS_PER_BATCH // image_size**2))


def default_chunk_size(images: int, batch_size: int) -> int:
    """Images of a chunk: the fewest whole batches that make at most MAX_CHUNKS chunks."""
    return batch_size * -(-images // (MAX_CHUNKS * batch_size))


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
    """The header of the cache to make.

    Args:
        samples: smoothing samples, the image included; 1 where the preprocessing makes several views.
    Raises: CacheError for a vocabulary beyond 16 bits; UsageError for images of another size than the tokenizer reads,
        for smoothing samples of several views, and for latents beside continuous tokens.
    """
    if tokenizer.channels and latents:
        why = f"the tokens of {tokenizer.name} are its latents, as float32"
        raise UsageError("no use for latents beside continuous tokens", why, "leave out --latents")
    if tokenizer.vocab_size > MAX_VOCABULARY:
        why = f"its vocabulary has {tokenizer.vocab_size} entries, a cache holds tokens below {MAX_VOCABULARY}"
        raise CacheError(f"tokens of {tokenizer.name} do not fit into a token cache", why)
    if preprocess.size != tokenizer.image_size:
        why = f"it gives {preprocess.size} pixels a side, {tokenizer.name} reads {tokenizer.image_size}"
        raise UsageError(f"preprocessing '{preprocess}' does not fit the tokenizer", why)
    views, is_noisy = preprocess.views, samples > 1  # without smoothing samples, sigma and seed have no effect
    kind = POSTERIOR if tokenizer.channels and is_noisy else SMOOTHING
    return CacheHeader(
        tokenizer=tokenizer.name,
        tokenizer_file=Path(tokenizer.file).name,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        layout=tokenizer.layout,
        image_size=tokenizer.image_size,
        preprocess=str(preprocess),
        precision=tokenizer.precision,
        samples=views.samples(samples),
        sigma=float(sigma) if is_noisy and not tokenizer.channels else 0.0,
        seed=seed if is_noisy else 0,
        latents=latents,
        class_names=images.class_names,
        dataset=images.dataset,
        source=images.source,
        images=len(images),
        images_sha256=_digest(images),
        inferred=dict(tokenizer.inferred),
        views=kind if views.kind == SINGLE else views.kind,
        channels=tokenizer.channels,
    )


def _digest(images: ImageSet) -> str:
    """sha256 of the JSON text [names, labels], without the text of all images in memory at once."""
    digest = hashlib.sha256()
    labels = (images.labels[start : start + IMAGES_PER_HASH].tolist() for start in _starts(len(images)))
    names = (list(images.names[start : start + IMAGES_PER_HASH]) for start in _starts(len(images)))
    for opening, lists in (("[[", names), ("], [", labels)):
        for block in lists:
            digest.update((opening + json.dumps(block)[1:-1]).encode())
            opening = ", "
    digest.update(b"]]")
    return digest.hexdigest()


def _starts(count: int) -> Iterable[int]:
    return range(0, count, IMAGES_PER_HASH)
