"""Chunks of images that a tokenizer encodes and decodes: what is measured of them, and how it is stored.

Shapes: n images of a chunk that could be read, B of a batch, H pixels a side, K grids, V codes, D features.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from avarc_cli.errors import out_of_memory_as
from avarc_cli.metrics.codes import Codes
from avarc_cli.metrics.features import Network, cut
from avarc_cli.metrics.pixels import Batch, SetImages
from avarc_cli.metrics.similarity import WINDOW, psnr, ssim
from avarc_cli.tokenizer import Tokenizer
from avarc_cli.tokens.reconstruct import from_pixels, to_pixels
from avarc_cli.work.chunks import TaskLoader, Tick, from_json_array, to_json_array

FORMAT = "avarc reconstructions, format 1"
LESS_AT_ONCE = "use a smaller --batch-size"


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """Of a chunk of images."""

    psnr: np.ndarray
    """(n,) float64, dB."""
    ssim: np.ndarray
    """(n,) float64; empty for images that are smaller than its window."""
    counts_KV: np.ndarray
    """How often each code occurs in each grid, int64; (0, 0) of continuous tokens."""
    features_2nD: np.ndarray
    """Pooled features of the images and of their reconstructions, float32; (2, n, 0) without the Inception network."""
    pictures: tuple[bytes, ...]
    """The reconstructions as PNG files, if they are to be kept."""
    unreadable: tuple[tuple[str, str], ...]
    """(name, reason) of images that could not be read."""

    def write_pictures(self, folder: Path, first: int) -> None:
        """Write the pictures as files numbered from `first`. Raises: OSError."""
        for path, data in self._files(folder, first):
            path.write_bytes(data)

    def is_written(self, folder: Path, first: int) -> bool:
        """Whether these files are there, with these bytes. Raises: OSError."""
        return all(path.is_file() and path.read_bytes() == data for path, data in self._files(folder, first))

    def _files(self, folder: Path, first: int) -> Iterator[tuple[Path, bytes]]:
        return ((folder / f"{number:06d}.png", data) for number, data in enumerate(self.pictures, start=first))


@dataclass(frozen=True)
class Reconstructor:
    """Reconstructs chunks of images (`work.chunks.ChunkTask`)."""

    images: SetImages
    tokenizer: Tokenizer
    network: Network | None
    """What rFID is computed with, if it is to be."""
    batch_size: int
    pictures: bool
    """Whether the reconstructions are kept."""

    @property
    def uses_gpu(self) -> bool:
        return self.tokenizer.device.type == "cuda"

    def request(self) -> dict[str, Any]:
        """What the results depend on, as JSON types."""
        return {
            "format": FORMAT,
            "images": self.images.identity(),
            "tokenizer": self.tokenizer.sha256,
            "layout": self.tokenizer.layout.to_dict(),
            "inferred": dict(self.tokenizer.inferred),
            "network": None if self.network is None else self.network.sha256,
            "device": self.tokenizer.device.type,
            "batch_size": self.batch_size,
            "pictures": self.pictures,
        }

    def loader(self) -> TaskLoader[Reconstructed]:
        network = None if self.network is None else self.network.loader()
        return partial(_load_task, self.images, self.tokenizer.loader(), network, self.batch_size, self.pictures)

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, Reconstructed]]:
        """Number and result of each chunk; tick is called after each batch.

        Raises: AvarcError for lack of memory; UsageError for a decoder that needs a caption.
        """
        batches = {number: cut(items, self.batch_size) for number, items in chunks.items()}
        read = self.images.read([batch for some in batches.values() for batch in some])
        for number, some in batches.items():
            yield number, self._of_chunk(islice(read, len(some)), tick)

    def _of_chunk(self, batches: Iterator[Batch], tick: Tick) -> Reconstructed:
        codes = None if self.tokenizer.channels else Codes(self.tokenizer.layout, self.tokenizer.vocab_size)
        similar, structural, features = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
        pictures, unreadable = list[bytes](), list[tuple[str, str]]()
        for batch in batches:
            if count := len(batch.pixels):
                with out_of_memory_as(f"not enough memory to reconstruct {count} images at once", LESS_AT_ONCE):
                    tokens, again_BHH3 = self._again(batch.pixels)
                    features.append(self._features(batch.pixels, again_BHH3))
                if codes is not None:
                    codes.add(tokens)
                similar.append(psnr(batch.pixels, again_BHH3))
                if self.images.side >= WINDOW:
                    structural.append(ssim(batch.pixels, again_BHH3))
                pictures += map(_png, again_BHH3) if self.pictures else ()
            unreadable += batch.unreadable
            tick(count + len(batch.unreadable))
        return Reconstructed(
            psnr=np.concatenate(similar or [np.empty(0)]),
            ssim=np.concatenate(structural or [np.empty(0)]),
            counts_KV=np.empty((0, 0), np.int64) if codes is None else codes.counts_KV,
            features_2nD=np.concatenate(features or [np.empty((2, 0, 0), np.float32)], axis=1),
            pictures=tuple(pictures),
            unreadable=tuple(unreadable),
        )

    @torch.inference_mode()
    def _again(self, pixels_BHH3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and reconstructions of these images."""
        tokens = self.tokenizer.quantize(self.tokenizer.encode(from_pixels(pixels_BHH3)))
        return tokens.cpu().numpy(), to_pixels(self.tokenizer.decode(tokens))

    def _features(self, *images: np.ndarray) -> np.ndarray:
        """Pooled features of two sets of images, (2, B, D)."""
        if self.network is None:
            return np.empty((2, len(images[0]), 0), np.float32)
        return np.stack([self.network(each)[0] for each in images])


def _load_task(
    images: SetImages,
    load_tokenizer: Callable[[str], Tokenizer],
    load_network: Callable[[str], Network] | None,
    batch_size: int,
    pictures: bool,
    device: str,
) -> Reconstructor:
    network = None if load_network is None else load_network(device)
    return Reconstructor(images, load_tokenizer(device), network, batch_size, pictures)


def _png(pixels_HH3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HH3).save(buffer, format="PNG")
    return buffer.getvalue()


class ReconstructedFormat:
    """The files of chunks (`work.chunks.ChunkFormat`)."""

    def to_arrays(self, result: Reconstructed) -> dict[str, np.ndarray]:
        return {
            "psnr": result.psnr,
            "ssim": result.ssim,
            "counts": result.counts_KV,
            "features": result.features_2nD,
            "png": np.frombuffer(b"".join(result.pictures), np.uint8),
            "png_bytes": np.array([len(each) for each in result.pictures], np.int64),
            "unreadable": to_json_array(result.unreadable),
        }

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> Reconstructed:
        unreadable = tuple((str(name), str(reason)) for name, reason in from_json_array(arrays["unreadable"]))
        ends = np.cumsum(arrays["png_bytes"])
        pictures = tuple(each.tobytes() for each in np.split(arrays["png"], ends)[:-1])
        found = Reconstructed(
            arrays["psnr"], arrays["ssim"], arrays["counts"], arrays["features"], pictures, unreadable
        )
        read = len(items) - len(unreadable)
        if {len(found.psnr), found.features_2nD.shape[1]} != {read} or not {len(found.ssim), len(pictures)} <= {
            0,
            read,
        }:
            raise ValueError("it is of another number of images")
        return found
