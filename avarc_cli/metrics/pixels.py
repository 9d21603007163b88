"""Images to evaluate: all of one size, in a fixed order, read in batches.

Shapes: n images that could be read, H pixels a side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.labels import UNKNOWN
from avarc_cli.data.preprocess import DECODING_ERRORS, Preprocess
from avarc_cli.errors import UsageError
from avarc_cli.progress import Progress, no_progress
from avarc_cli.words import counted
from avarc_cli.work.workers import Workers


@dataclass(frozen=True)
class Batch:
    """Some images."""

    pixels: np.ndarray
    """(n, H, H, 3) uint8."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(name, reason) of the others."""


class Pixels(Protocol):
    """Images of one size."""

    @property
    def source(self) -> str:
        """Where they come from, for messages."""
        ...

    @property
    def side(self) -> int:
        """H."""
        ...

    def __len__(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """What identifies these images, as JSON types."""
        ...

    def read(self, batches: Sequence[range]) -> Iterator[Batch]:
        """The images of these batches, in this order."""
        ...


@dataclass(frozen=True)
class Decoding:
    """Which processes decode images."""

    workers: int | None = 0
    """Beside each that reads; 0 for none, None for `tokens.encoder.default_workers`."""
    readers: int = 1
    """That read at once."""

    @classmethod
    def beside(cls, on: Workers, workers: int | None) -> Decoding:
        """What is usual beside these workers, unless `workers` says otherwise. Those of Ray decode themselves."""
        return cls(workers if on.engine == "local" else 0, on.count)

    def processes(self) -> int:
        """Their number beside each that reads."""
        import torch  # only now, after all that may be wrong

        from avarc_cli.tokens.encoder import default_workers

        kind = "cuda" if torch.cuda.is_available() else "cpu"
        return default_workers(kind, self.readers) if self.workers is None else self.workers


HERE = Decoding()
"""In the process that reads."""


@dataclass(frozen=True, eq=False)
class SetImages:
    """Images of a set, brought to one size."""

    images: ImageSet
    preprocess: Preprocess
    decoding: Decoding = HERE

    @property
    def source(self) -> str:
        return self.images.source

    @property
    def side(self) -> int:
        return self.preprocess.size

    def __len__(self) -> int:
        return len(self.images)

    def identity(self) -> dict[str, Any]:
        names = hashlib.sha256(json.dumps(list(self.images.names)).encode())
        names.update(self.images.encoded.stamps().tobytes())
        return {"images": len(self), "preprocess": str(self.preprocess), "files": names.hexdigest()}

    def read(self, batches: Sequence[range]) -> Iterator[Batch]:
        from avarc_cli.tokens.encoder import decode  # imports torch: only now, after all that may be wrong

        for decoded in decode(self.images, self.preprocess, batches, self.decoding.processes()):
            unreadable = tuple((each.name, each.reason) for each in decoded.unreadable)
            yield Batch(decoded.pixels[:, 0], unreadable)


def of_samples(images: ImageSet, decoding: Decoding = HERE, progress: Progress = no_progress) -> SetImages:
    """Generated images as they are, those of several classes in turn.

    Parts of the Inception Score are consecutive images; sorted by class, each would hold few classes.

    Raises: UsageError unless all are squares of one size.
    """
    side = _side(images, progress)
    return SetImages(images.take(in_turn(images.labels)), Preprocess("none", side), decoding)


def in_turn(labels_N: np.ndarray) -> np.ndarray:
    """Rows in the order: the first image of each class, the second of each, and so on; unlabelled ones as one class."""
    if len(np.unique(labels_N[labels_N != UNKNOWN])) < 2:
        return np.arange(len(labels_N))
    order = np.argsort(labels_N, kind="stable")
    _, first, counts = np.unique(labels_N[order], return_index=True, return_counts=True)
    rank_N = np.empty(len(labels_N), dtype=np.int64)
    rank_N[order] = np.arange(len(labels_N)) - np.repeat(first, counts)
    return np.lexsort((labels_N, rank_N))


def _side(images: ImageSet, progress: Progress) -> int:
    """Pixels a side of all images, by their headers."""
    sizes: dict[tuple[int, int], str] = {}
    for row, name in enumerate(images.names):
        try:
            with images.encoded.open(row) as file, Image.open(file) as image:
                sizes.setdefault(image.size, name)
        except DECODING_ERRORS as error:
            raise UsageError(f"cannot read '{name}'", " ".join(str(error).split()), "leave it out") from error
        if len(sizes) > 1:
            break
        progress(row + 1, len(images))
    (first, one), *others = sizes.items()
    if others:
        (second, other) = others[0]
        why = f"'{one}' is {first[0]} x {first[1]} pixels, '{other}' {second[0]} x {second[1]}"
        raise UsageError(f"the images of '{images.source}' have different sizes", why, "make all of one size")
    if first[0] != first[1]:
        raise UsageError(f"'{one}' is not square", f"it is {first[0]} x {first[1]} pixels", "crop the images")
    return first[0]


def jpeg_note(images: ImageSet) -> str:
    """What to say of samples that are stored as JPEG; empty for others."""
    lossy = sum(name.lower().endswith((".jpg", ".jpeg")) for name in images.names)
    return f"{counted(lossy, 'sample')} stored as JPEG: its artifacts change all scores; use PNG" if lossy else ""
