"""Chunks of pictures: how they are drawn, and how they are kept until all are there.

A chunk is one batch, so a picture is the same however the work is divided.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from avarc_cli.errors import out_of_memory_as
from avarc_cli.loaded import LoadedModel
from avarc_cli.sampling.folder import Layout
from avarc_cli.sampling.pictures import Sampling, draw
from avarc_cli.storage import write_bytes
from avarc_cli.words import counted
from avarc_cli.work.chunks import ChunkFormat, TaskLoader, Tick


class Keeping(ChunkFormat[np.ndarray], Protocol):
    """How the pictures of a chunk are kept. It is picklable, and small."""

    def keep(self, items: range, pictures: np.ndarray) -> np.ndarray:
        """The result of a chunk with these pictures (n, H, H, 3), in the process that drew them. Raises: OSError."""
        ...


@dataclass(frozen=True)
class Files(Keeping):
    """PNG files in a folder; the result is the sha256 of each, (n, 32) uint8.

    A chunk whose pictures are gone or changed counts as corrupt.
    """

    layout: Layout
    out: Path
    """Absolute."""

    def keep(self, items: range, pictures: np.ndarray) -> np.ndarray:
        digests = []
        for item, pixels in zip(items, pictures, strict=True):
            path, data = self.out / self.layout.file(item), _png(pixels)
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, data)
            digests.append(_digest(data))
        return np.stack(digests)

    def to_arrays(self, result: np.ndarray) -> Mapping[str, np.ndarray]:
        return {"sha256": result}

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        found = np.stack([_digest((self.out / self.layout.file(item)).read_bytes()) for item in items])
        if not np.array_equal(found, arrays["sha256"]):
            raise ValueError("its pictures have changed")
        return found


@dataclass(frozen=True)
class Pixels(Keeping):
    """The pixels themselves, in the chunk's own file."""

    side: int
    """H."""

    def keep(self, items: range, pictures: np.ndarray) -> np.ndarray:
        return pictures

    def to_arrays(self, result: np.ndarray) -> Mapping[str, np.ndarray]:
        return {"pixels": result}

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        pixels = arrays["pixels"]
        if pixels.dtype != np.uint8 or pixels.shape != (len(items), self.side, self.side, 3):
            raise ValueError(f"its pixels are {pixels.dtype} {pixels.shape}")
        return pixels


@dataclass(frozen=True)
class Drawer:
    """Draws chunks of pictures (`work.chunks.ChunkTask`)."""

    model: LoadedModel
    class_ids: tuple[int, ...]
    layout: Layout
    how: Sampling
    keeping: Keeping

    @property
    def uses_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return torch.device(self.model.device).type == "cuda"

    def loader(self) -> TaskLoader[np.ndarray]:
        """Makes this task in another process, with a model of its own."""
        return partial(_on_device, self.model.loader(), self.class_ids, self.layout, self.how, self.keeping)

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, np.ndarray]]:
        """Number and result of each of these chunks.

        Raises: AvarcError when there is not enough memory for a batch; OSError.
        """
        for number, items in chunks.items():
            yield number, self._draw(items)
            tick(len(items))

    def _draw(self, items: range) -> np.ndarray:
        places = [self.layout.place(item) for item in items]
        ids, numbers = [self.class_ids[place] for place, _ in places], [number for _, number in places]
        what = f"not enough memory to draw {counted(len(items), 'picture')} at once"
        with out_of_memory_as(what, "use a smaller --batch-size, with another --out"):
            pictures = draw(self.model, ids, numbers, self.how)
        return self.keeping.keep(items, pictures)


def _on_device(
    load: Callable[[str], LoadedModel],
    class_ids: tuple[int, ...],
    layout: Layout,
    how: Sampling,
    keeping: Keeping,
    device: str,
) -> Drawer:
    return Drawer(load(device), class_ids, layout, how, keeping)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _digest(data: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(data).digest(), dtype=np.uint8)
