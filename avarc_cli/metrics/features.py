"""Features of images, in chunks; in a folder they survive a kill, and are not computed twice.

Shapes: n images of a chunk that could be read, D pooled and E spatial features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from avarc_cli.errors import out_of_memory_as
from avarc_cli.metrics.pixels import Batch, Pixels
from avarc_cli.progress import Notify, Progress, no_message, no_progress
from avarc_cli.work.chunks import Chunks, TaskLoader, Tick, from_json_array, to_json_array
from avarc_cli.work.kept import Keep, results
from avarc_cli.work.workers import HERE, Workers

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

    def loader(self) -> Callable[[str], Network]:
        """Loads this network in another process, on the device that it is called with. Picklable."""
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
    workers: Workers = HERE,
    progress: Progress = no_progress,
    say: Notify = no_message,
) -> Iterator[Features]:
    """Features of all images, chunk by chunk.

    Args:
        keep: folder of the chunks. Those that are there already, of the same images and network, are not computed.
        batch_size: images that the network reads at once, which decides about roundings.
        workers: who computes; other processes need `keep`.
        progress: called with (images done, images in all).
        say: called with messages for the user.
    Raises: UsageError when the folder holds other work; AvarcError when there is not enough memory, or another process
        uses the folder; Interrupted on Ctrl-C, where features are kept; OSError.
    """
    request = _request(pixels, network, batch_size)
    kept = None if keep is None else Keep(keep, request, _Format(), "features")
    task = FeatureTask(pixels, network, batch_size)
    with results(task, Chunks(len(pixels), CHUNK), kept, workers=workers, progress=progress, say=say) as found:
        yield from found


def _request(pixels: Pixels, network: Network, batch_size: int) -> dict[str, Any]:
    """What features depend on, as JSON types."""
    return {
        "format": FORMAT,
        "images": pixels.identity(),
        "network": network.sha256,
        "device": network.device.type,
        "batch_size": batch_size,
    }


@dataclass(frozen=True)
class FeatureTask:
    """Computes features of chunks of images (`work.chunks.ChunkTask`)."""

    pixels: Pixels
    network: Network
    batch_size: int

    @property
    def uses_gpu(self) -> bool:
        return self.network.device.type == "cuda"

    def loader(self) -> TaskLoader[Features]:
        return partial(_load_task, self.network.loader(), self.pixels, self.batch_size)

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, Features]]:
        """Number and features of each chunk; tick is called after each batch. Raises: AvarcError for lack of memory."""
        batches = {number: cut(items, self.batch_size) for number, items in chunks.items()}
        read = self.pixels.read([batch for some in batches.values() for batch in some])
        for number, some in batches.items():
            yield number, self._compute(islice(read, len(some)), tick)

    def _compute(self, batches: Iterator[Batch], tick: Tick) -> Features:
        pooled, spatial, unreadable = list[np.ndarray](), list[np.ndarray](), list[tuple[str, str]]()
        for batch in batches:
            if count := len(batch.pixels):
                what = f"not enough memory for the features of {count} images at once"
                with out_of_memory_as(what, "use a smaller --batch-size"):
                    found = self.network(batch.pixels)
                for kept, features in zip((pooled, spatial), found, strict=True):
                    kept.append(features)
            unreadable += batch.unreadable
            tick(count + len(batch.unreadable))
        empty = np.empty((0, 0), np.float32)
        return Features(np.concatenate(pooled or [empty]), np.concatenate(spatial or [empty]), tuple(unreadable))


def _load_task(load: Callable[[str], Network], pixels: Pixels, batch_size: int, device: str) -> FeatureTask:
    return FeatureTask(pixels, load(device), batch_size)


def cut(items: range, size: int) -> list[range]:
    """Batches of this many items; the last one may have fewer."""
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
