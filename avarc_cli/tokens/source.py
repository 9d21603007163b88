"""Images, or a token cache: what can be learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import numpy as np

from avarc_cli.data.datasets import ImageSet
from avarc_cli.tokens.cache import TokenCache

Source: TypeAlias = ImageSet | TokenCache
SourceT = TypeVar("SourceT", bound=ImageSet | TokenCache)


def class_names(source: Source) -> tuple[str, ...]:
    """What the labels of a source index into."""
    return source.header.class_names if isinstance(source, TokenCache) else source.class_names


def image_names(source: Source) -> Sequence[str]:
    """Of the images, below what was read or encoded."""
    return source.paths if isinstance(source, TokenCache) else source.names


def title(source: Source) -> str:
    """What the user calls it."""
    return str(source.path) if isinstance(source, TokenCache) else source.source


def relabelled(source: SourceT, labels: np.ndarray, names: Sequence[str]) -> SourceT:
    """The same images with labels that index into these classes."""
    labels = labels.astype(np.int32)
    if isinstance(source, TokenCache):
        return replace(source, labels=labels, header=replace(source.header, class_names=tuple(names)))
    return replace(source, labels=labels, class_names=tuple(names))
