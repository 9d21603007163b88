"""Features of images, in chunks; in a folder they survive a kill, and are not computed twice.

Shapes: n images of a chunk that could be read, D pooled and E spatial features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from avarc_cli.errors import UsageError, describe_differences, out_of_memory_as
from avarc_cli.metrics.pixels import Pixels
from avarc_cli.progress import Progress, no_progress
from avarc_cli.work.chunks import (
    ChunkFolder,
    Chunks,
    Tick,
    check_own,
    from_json_array,
    recorded_request,
    to_json_array,
)
from avarc_cli.work.locks import only_writer

FORMAT = "avarc features of images, format 1"
CHUNK = 1000  # images, which is what a kill loses
BATCH = 32
"""Images that the network reads at once; a choice without measurement."""


class Network(Protocol):
    """What gives features; `inception.Extractor` is one."""

    @property
    def sha256(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    def __call__(self, images_BHH3: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
        """Pooled and spatial features, (B, D) and (B, E) float32."""
        ...


@dataclass(frozen=True, eq=False)
class Features:
    """Of a chunk of images."""

    pooled: np.ndarray
    """(n, D) float32."""
    spatial: np.ndarray
    """(n, E) float32."""
    unreadable: tuple[tuple[str, str], ...]
    """(name, reason) of images that could not be read."""


def extract(
    pixels: Pixels,
    network: Network,
    *,
    keep: Path | None = None,
    batch_size: int = BATCH,
    progress: Progress = no_progress,
) -> Iterator[Features]:
    """Features of all images, chunk by chunk.

    Args:
        keep: folder of the chunks. Those that are there already, of the same images and network, are not computed.
        batch_size: images that the network reads at once, which decides about roundings.
        progress: called with (images done, images in all).
    Raises: UsageError when the folder holds other work; AvarcError when there is not enough memory, or another process
        uses the folder; OSError.
    """
    chunks = Chunks(len(pixels), CHUNK)
    with ExitStack() as stack:
        folder = None
        if keep is not None:
            check_own(keep)
            keep.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(keep))
            folder = _open(keep, chunks, _request(pixels, network, batch_size))
        found = folder.finished() if folder else set()
        found -= set(folder.corrupt(sorted(found))) if folder else set()
        done = 0

        def tick(images: int) -> None:
            nonlocal done
            done += images
            progress(done, len(pixels))

        tick(0)
        missing = [number for number in range(chunks.count) if number not in found]
        computed = _compute(pixels, network, chunks, missing, batch_size, tick)
        for number in range(chunks.count):
            if folder is not None and number in found:
                features = folder.load(number)
                tick(len(chunks.items_of(number)))
            else:
                features = next(computed)
                if folder is not None:
                    folder.save(number, features)
            yield features


def _request(pixels: Pixels, network: Network, batch_size: int) -> dict[str, Any]:
    """What features depend on, as JSON types."""
    return {
        "format": FORMAT,
        "images": pixels.identity(),
        "network": network.sha256,
        "device": network.device.type,
        "batch_size": batch_size,
    }


def _open(path: Path, chunks: Chunks, request: Mapping[str, Any]) -> ChunkFolder[Features]:
    folder = ChunkFolder(path, chunks, _Format())
    recorded = recorded_request(path)
    if recorded is None:
        folder.create(request)
    elif why := describe_differences(recorded, request):
        raise UsageError(f"'{path}' holds features of something else", why, "name another folder, or delete it")
    folder.clean(range(chunks.count))
    return folder


def _compute(
    pixels: Pixels, network: Network, chunks: Chunks, numbers: list[int], batch_size: int, tick: Tick
) -> Iterator[Features]:
    """Features of these chunks; tick is called after each batch."""
    batches = {number: _batches(chunks.items_of(number), batch_size) for number in numbers}
    read = pixels.read([batch for some in batches.values() for batch in some])
    for some in batches.values():
        pooled, spatial, unreadable = list[np.ndarray](), list[np.ndarray](), list[tuple[str, str]]()
        for batch in some:
            loaded = next(read)
            if count := len(loaded.pixels):
                what = f"not enough memory for the features of {count} images at once"
                with out_of_memory_as(what, "use a smaller --batch-size"):
                    found = network(loaded.pixels)
                for kept, features in zip((pooled, spatial), found, strict=True):
                    kept.append(features)
            unreadable += loaded.unreadable
            tick(len(batch))
        empty = np.empty((0, 0), np.float32)
        yield Features(np.concatenate(pooled or [empty]), np.concatenate(spatial or [empty]), tuple(unreadable))


def _batches(items: range, size: int) -> list[range]:
    return [items[start : start + size] for start in range(0, len(items), size)]


class _Format:
    """The files of chunks (`work.chunks.ChunkFormat`)."""

    def to_arrays(self, result: Features) -> dict[str, np.ndarray]:
        unreadable = to_json_array(result.unreadable)
        return {"pooled": result.pooled, "spatial": result.spatial, "unreadable": unreadable}

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> Features:
        unreadable = tuple((str(name), str(reason)) for name, reason in from_json_array(arrays["unreadable"]))
        features = Features(arrays["pooled"], arrays["spatial"], unreadable)
        if {len(features.pooled), len(features.spatial)} != {len(items) - len(unreadable)}:
            raise ValueError("it is of another number of images")
        return features
