"""What classes are learned from: images, or a token cache, and which of them belong to which class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avarc_cli.data.datasets import open_images
from avarc_cli.data.labels import normalize
from avarc_cli.errors import UsageError, shorten_list
from avarc_cli.tokens.source import Source, class_names
from avarc_cli.tokens.verify import read_verified
from avarc_cli.words import counted

__all__ = ["Source", "by_class", "class_names", "open_source"]


def open_source(data: Sequence[Path], *, is_cache: bool, allow_outside: bool = False) -> Source:
    """Images, or a token cache; nothing is encoded yet. Raises: UsageError, CacheError."""
    return read_verified(data[0]) if is_cache else open_images(data, allow_outside=allow_outside)


def by_class(source: Source, name: str | None, title: str) -> dict[str, np.ndarray]:
    """Class name -> rows of its images.

    Args:
        name: the class to take from a labelled source, or the class of all images of another; None takes every class.
        title: the source, for messages.
    Raises: UsageError when there are neither labels nor a name, or the name is none of several classes.
    """
    names, labels = class_names(source), source.labels
    if name is None:
        if not names or (labels < 0).any():
            raise UsageError(
                f"the images of '{title}' have no classes",
                "without a name, each class needs a sub-folder",
                f"avarc add-class NAME {title} ...",
            )
        return {c: np.flatnonzero(labels == i) for i, c in enumerate(names) if (labels == i).any()}
    same = [i for i, c in enumerate(names) if normalize(c) == normalize(name)]
    if not same and len(names) > 1:
        raise UsageError(
            f"'{title}' holds {counted(len(names), 'class')}, none of them '{name}'",
            f"they are {shorten_list(names)}",
            "leave the name out to add them all, or name one of its sub-folders",
        )
    return {name: np.flatnonzero(labels == same[0]) if same else np.arange(len(source))}
