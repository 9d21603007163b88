"""Batches of tokens to train on: of images, which are encoded when they are needed, or of a token cache.

Shapes: B images, L tokens.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from avarc_cli.errors import UsageError
from avarc_cli.layers.precision import tf32
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.sampling import generator_of
from avarc_cli.loaded import LoadedTokenizer
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.header import POSTERIOR, SMOOTHING
from avarc_cli.tokens.source import Source, class_names
from avarc_cli.train.images import Augment, TrainingImages, ValidationImages
from avarc_cli.train.left_out import LeftOut
from avarc_cli.train.listing import Listing
from avarc_cli.train.order import rows_at, views_at
from avarc_cli.words import counted


class TokenBatches(Protocol):
    """What a generator is trained on."""

    @property
    def subject(self) -> Mapping[str, str]:
        """What identifies the data, by name: a training of other data does not go on where this one stopped."""
        ...

    def batch(self, step: int, rows: Rows) -> tuple[Tensor, Tensor, torch.Generator]:
        """Part of a step's batch, a function of the step alone.

        Returns: tokens (B, L) int64 of these rows, continuous ones drawn from their distributions; the class ids of
            the whole batch, int64; the step's own generator, in the same state for any rows.
        """
        ...


@dataclass(frozen=True)
class EncodedImages:
    """Batches of augmented images, encoded when they are needed, on the tokenizer's device."""

    tokenizer: LoadedTokenizer  # what encodes
    images: TrainingImages  # augmented

    def __len__(self) -> int:
        return len(self.images)

    @property
    def subject(self) -> Mapping[str, str]:
        return self.images.subject

    def listing(self) -> Listing:
        """The images one by one."""
        return self.images.listing()

    def batch(self, step: int, rows: Rows) -> tuple[Tensor, Tensor, torch.Generator]:
        """As `TokenBatches.batch`."""
        x, labels, generator = self.images.batch(step, rows)
        network, device = self.tokenizer.network, self.tokenizer.device
        with torch.no_grad(), tf32(False), torch.autocast(device.type, enabled=False):
            latents = network.encode(x.to(device))
            if not network.channels:
                return network.tokenize(latents), labels, generator
            noise = torch.randn(rows.of, network.layout.num_tokens, network.channels, generator=generator)
            return network.draw(latents, rows.take(noise).to(device)), labels, generator

    def rows(self, step: int, batch_size: int) -> np.ndarray:
        """Which images a step's batch has."""
        return self.images.rows(step, batch_size)


class CachedTokens:
    """Batches of a token cache, in the order of `TrainingImages`. In each epoch, an image shows one of its views.

    Of several caches of the same images (`TokenCache.others`), each is drawn equally often, then one of its views, as
    in LlamaGen's code.
    """

    def __init__(self, cache: TokenCache, *, seed: int) -> None:
        """Raises: UsageError for a cache without images, or of means; CacheError for one that cannot be read."""
        if not len(cache):
            raise UsageError("there are no images to train on", f"'{cache.path}' is empty")
        caches = (cache, *cache.others)
        self.cache, self.seed, self._mapped = cache, seed, [each.mapped() for each in caches]
        of_each = [_trained_views(each) for each in caches]
        length = math.lcm(*map(len, of_each))
        self.views = [(i, views[k % len(views)]) for i, views in enumerate(of_each) for k in range(length)]
        """What is drawn from: (number of a cache, view), each cache equally often."""

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def subject(self) -> dict[str, str]:
        """As `TokenBatches.subject`."""
        names = "\0".join(self.cache.paths).encode("utf-8", "surrogatepass")
        digest = zlib.crc32(self.cache.labels.tobytes(), zlib.crc32(names))
        of = f"{len(self)} of {self.cache.header.source}, checksum {digest:08x}"
        digests = " and ".join(each.digest() for each in (self.cache, *self.cache.others))
        return {"images": f"{of}, as tokens {digests} in {counted(len(self.views), 'view')}"}

    def listing(self) -> Listing:
        """The images one by one."""
        return Listing(self.cache.paths, self.cache.labels, self.cache.header.class_names)

    def batch(self, step: int, rows: Rows) -> tuple[Tensor, Tensor, torch.Generator]:
        """As `TokenBatches.batch`."""
        chosen, own = self.rows(step, rows.of), slice(rows.start, rows.stop)
        which, views = np.asarray(self.views)[self._drawn(step, rows.of)[own]].T
        images = chosen[own]
        tokens = self.cache.views_of(images, np.where(which == 0, views, 0), self._mapped[0])
        for number, mapped in enumerate(self._mapped[1:], 1):
            here = which == number
            tokens[here] = self.cache.views_of(images[here], views[here], mapped)
        tokens_BL = torch.from_numpy(tokens)
        return tokens_BL, torch.from_numpy(self.cache.labels[chosen]).long(), generator_of(self.seed, step)

    def rows(self, step: int, batch_size: int) -> np.ndarray:
        """Which images a step's batch has."""
        return rows_at(self._places(step, batch_size), len(self), self.seed)

    def _drawn(self, step: int, batch_size: int) -> np.ndarray:
        """Which of `views` each image of a batch shows."""
        return views_at(self._places(step, batch_size), len(self), len(self.views), self.seed)

    def _places(self, step: int, batch_size: int) -> np.ndarray:
        return np.arange(step * batch_size, (step + 1) * batch_size)


class CachedOnce(CachedTokens):
    """The first trained view of each image of a cache once, in their order, as `ValidationImages`."""

    def __init__(self, cache: TokenCache, *, batch_size: int, seed: int) -> None:
        """Raises: as `CachedTokens`."""
        super().__init__(cache, seed=seed)
        self.views, self._batch_size = self.views[:1], batch_size

    def rows(self, step: int, batch_size: int) -> np.ndarray:
        return step * self._batch_size + np.arange(batch_size)

    def _drawn(self, step: int, batch_size: int) -> np.ndarray:
        return np.zeros(batch_size, np.int64)


def training_batches(
    source: Source, tokenizer: LoadedTokenizer, augment: Augment | None, *, seed: int, left_out: LeftOut | None = None
) -> EncodedImages | CachedTokens:
    """Batches of tokens of this tokenizer to train on.

    Args:
        augment: of images; None for random crops. Those of a cache are as they were encoded.
        left_out: what the images that cannot be read are added to.
    Raises: as `TrainingImages` and `CachedTokens`; CacheError for a cache of another tokenizer.
    """
    if isinstance(source, TokenCache):
        source.check(tokenizer)
        return CachedTokens(source, seed=seed)
    images = TrainingImages(source, tokenizer.image_size, augment or Augment(), seed=seed, left_out=left_out)
    return EncodedImages(tokenizer, images)


def validation_batches(
    source: Source,
    tokenizer: LoadedTokenizer,
    augment: Augment | None,
    *,
    batch_size: int,
    seed: int,
    left_out: LeftOut | None = None,
) -> EncodedImages | CachedTokens:
    """Each image once, unchanged. Arguments, Raises: as `training_batches`; augment: decides how images are cut."""
    if isinstance(source, TokenCache):
        source.check(tokenizer)
        return CachedOnce(source, batch_size=batch_size, seed=seed)
    size, augment = tokenizer.image_size, augment or Augment()
    how: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "left_out": left_out}
    return EncodedImages(tokenizer, ValidationImages(source, size, augment, **how))


def check_classes(source: Source) -> None:
    """Raises: UsageError unless each image has a class."""
    if not class_names(source) or (source.labels < 0).any():
        raise UsageError(
            "images without a class", "a class-conditional model needs one for each", "use class sub-folders"
        )


def _trained_views(cache: TokenCache) -> range:
    """The views of an image, or draws of its continuous tokens; no samples with noise.

    Raises: UsageError for a cache of continuous tokens that has nothing but their means.
    """
    header = cache.header
    if header.channels and header.views != POSTERIOR:
        raise UsageError(
            f"'{cache.path}' has nothing but means of continuous tokens",
            "a generator is trained on draws from their distributions",
            "encode again with draws, such as avarc encode ... --samples 9",
        )
    if header.views == SMOOTHING:
        return range(1)
    return range(1 if header.views == POSTERIOR else 0, header.samples)
