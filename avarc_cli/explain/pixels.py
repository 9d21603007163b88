"""What to show as the input: the image as the tokenizer saw it, or what its tokens decode to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avarc_cli.data.datasets import ImageSet, load_pixels
from avarc_cli.data.image_source import open_regular
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import UnreadableImage, UsageError
from avarc_cli.tokens.cache import TokenCache

if TYPE_CHECKING:
    from avarc_cli.tokenizer import Tokenizer

PixelLoader = Callable[[int], tuple[np.ndarray, bool]]
"""Row of a token cache -> pixels (H, H, 3) uint8, and whether they were decoded from tokens."""


def pixels_of_images(images: ImageSet, cache: TokenCache) -> PixelLoader:
    """The images themselves, for a cache that was just made from them."""
    preprocess = Preprocess.parse(cache.header.preprocess)
    row_of = {name: row for row, name in enumerate(images.names)}
    return lambda row: (images.load(row_of[cache.paths[row]], preprocess), False)


def pixels_of_cache(cache: TokenCache, tokenizer: Tokenizer, within: Path | None = None) -> PixelLoader:
    """The image file that a row came from, if it still exists; otherwise what the row's tokens decode to.

    Args:
        within: as in `source_pixels`.
    """

    def load(row: int) -> tuple[np.ndarray, bool]:
        header = cache.header
        found = source_pixels(header.source, cache.paths[row], header.preprocess, header.dataset, within)
        if found is None:
            from avarc_cli.tokens.reconstruct import reconstruct  # imports torch

            return reconstruct(tokenizer, cache.tokens([row])[:, :1])[0, 0], True
        return found, False

    return load


def source_pixels(
    source: str, name: str, preprocess: str, dataset: str, within: Path | None = None
) -> np.ndarray | None:
    """One image file of a cache's or run's source, preprocessed; None when it cannot be read there any more.

    Args:
        source, name, preprocess: as the cache records them. dataset: the known dataset, or "".
        within: the folder that the file must be in, also after symbolic links; None for any.
    """
    path = _find_file(source, name)
    if path is None or (within is not None and not path.resolve().is_relative_to(within.resolve())):
        return None
    try:
        return load_pixels(lambda: open_regular(path), str(path), dataset, Preprocess.parse(preprocess))
    except (UnreadableImage, UsageError):  # UsageError: preprocessing that this version does not know
        return None


def _find_file(source: str, name: str) -> Path | None:
    """The image file that a source calls so, if there is one. No name leads out of its source."""
    inputs, path = source.split(", "), Path(name)
    if ".." in path.parts:
        return None
    places = [] if path.is_absolute() else [Path(source) / name]
    if Path(source).name == name:
        places.insert(0, Path(source))
    if len(inputs) > 1 and any(path.is_relative_to(each) for each in inputs):  # then a name begins with its input
        places.append(path)
    try:
        return next((place for place in places if place.is_file()), None)
    except (OSError, ValueError):  # a name that is too long, or has a null character
        return None
