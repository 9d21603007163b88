"""Token caches of the same images, each with other views of them, from which a training draws together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from avarc_cli.errors import UsageError, describe_differences
from avarc_cli.tokens.cache import TokenCache

OF_TOKENS = ("tokenizer_sha256", "image_size", "vocab_size", "channels")
"""Fields of a header that say what its tokens are, besides the layout."""


def mixed(caches: Sequence[TokenCache]) -> TokenCache:
    """The first cache with the others beside it (`TokenCache.others`).

    Raises: UsageError unless all have the tokens that one tokenizer made of the same images, in the same order.
    """
    first, *others = caches
    for other in others:
        sides = (f"in {other.path.name}", f"in {first.path.name}")
        if differences := describe_differences(_kind(other), _kind(first), sides=sides):
            what = f"'{other.path}' and '{first.path}' hold tokens of different kinds"
            raise UsageError(what, differences, "name caches that one tokenizer made")
        if _images(first) != _images(other) or not np.array_equal(first.labels, other.labels):
            raise UsageError(
                f"'{other.path}' and '{first.path}' are not of the same images",
                "several caches are for several views of each image: one of its crops is shown at a time",
                "encode the same folder twice; or join caches of different images: avarc cache merge",
            )
    return dataclasses.replace(first, others=tuple(others))


def _kind(cache: TokenCache) -> dict[str, object]:
    header = cache.header
    return {name: getattr(header, name) for name in OF_TOKENS} | {"layout": str(header.layout)}


def _images(cache: TokenCache) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return cache.paths, cache.header.class_names
