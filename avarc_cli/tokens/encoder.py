"""Chunks of images to tokens: decoding, in this process or in workers, and the tokenizer.

Shapes: B images of a batch, V views that are made of an image's pixels, n = B * V; S samples, L tokens; latents
(n, Z, h, w). S is V, or the number of smoothing samples where V is 1. Continuous tokens are (n, S, L, Z).
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avarc_cli import environment, heap
from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.image_source import DIGEST_SIZE, NO_DIGEST
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import AvarcError, UnreadableImage, first_line, lacks_memory, out_of_memory_as
from avarc_cli.process import end_with_parent
from avarc_cli.tokens.encoded import EncodedChunk, Unreadable
from avarc_cli.tokens.fingerprints import Fingerprints
from avarc_cli.tokens.header import CacheHeader
from avarc_cli.tokens.noise import sample_noise
from avarc_cli.tokens.reconstruct import from_pixels
from avarc_cli.work.chunks import TaskLoader, Tick

if TYPE_CHECKING:
    from avarc_cli.tokenizer import Tokenizer

MAX_WORKERS = 8
"""Beside a GPU; a choice without measurement, as none of our tokenizers was timed on one."""


@dataclass(frozen=True)
class Decoded:
    """A batch of images."""

    rows: tuple[int, ...]
    """Indices in the full set of the readable ones."""
    pixels: np.ndarray
    """All views of these, (B, V, H, H, 3) uint8."""
    unreadable: tuple[Unreadable, ...]
    """The others."""
    digests: np.ndarray
    """Of all images of the batch, as `Fingerprints` has them."""


class _Batches(Dataset[Decoded]):
    """The images as torch's loader reads them, one item a batch; it is sent to the worker processes."""

    def __init__(self, images: ImageSet, preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess

    def __getitem__(self, batch: range) -> Decoded:
        rows: list[int] = []
        unreadable: list[Unreadable] = []
        views, side = self.preprocess.views.count, self.preprocess.size
        pixels = np.empty((len(batch), views, side, side, 3), dtype=np.uint8)
        digests = dict.fromkeys(batch, NO_DIGEST)
        for index in batch:
            try:
                on_digest = partial(digests.__setitem__, index)
                pixels[len(rows)] = self.images.load_views(index, self.preprocess, on_digest)
                rows.append(index)
            except UnreadableImage as error:
                unreadable.append(Unreadable(index, self.images.names[index], error.why))
        digests_BD = np.frombuffer(b"".join(digests.values()), dtype=np.uint8).reshape(len(batch), DIGEST_SIZE)
        return Decoded(tuple(rows), pixels[: len(rows)], tuple(unreadable), digests_BD)


def default_workers(device: str, encoders: int = 1) -> int:
    """Processes that decode images: one is enough beside a CPU (docs/encoding.md), a GPU needs many.

    Args:
        encoders: processes that encode at once, each with its own that decode.
    """
    return 1 if device == "cpu" else max(1, min(MAX_WORKERS, (environment.cores() - 1) // encoders))


def decode(
    images: ImageSet, preprocess: Preprocess, batches: Sequence[range], workers: int
) -> Generator[Decoded, None, None]:
    """The images of these batches, in this order.

    Args:
        workers: processes that decode ahead; 0 decodes in this process, when a batch is asked for.
    Raises: AvarcError when a worker cannot be started or dies.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes")  # more workers than cores: the user's choice
        loader = DataLoader(
            _Batches(images, preprocess),
            batch_size=None,
            sampler=batches,
            num_workers=min(workers, len(batches)),
            collate_fn=_unchanged,  # arrays, through a pipe: tensors need more shared memory than containers have
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # the loader draws a number, which must not come from the caller's stream
        )
    try:
        yield from loader
    except (OSError, RuntimeError) as error:
        if not workers:
            raise
        fix = "use fewer --workers (0 decodes in the main process)"
        raise AvarcError("a process that decodes images died", first_line(error), fix) from error


def _unchanged(decoded: Any) -> Any:
    return decoded


def _begin_worker(_: int) -> None:
    """Leave Ctrl-C and a closed terminal, which signal all processes, to the parent, and end with it.

    Torch's worker may wait forever to hand over its last batch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # As the parent ends then as well: where a signal kills a worker, torch raises an error in the parent at any point,
    # also while it cleans up. This is a normal exit.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    end_with_parent()


@dataclass(frozen=True)
class ChunkEncoder:
    """Encodes chunks of images (`work.run.ChunkTask`).

    A chunk's batches are cut from its own images only, so that its tokens do not depend on other chunks.
    """

    images: ImageSet
    """The full set."""
    preprocess: Preprocess
    """How they become pixels."""
    tokenizer: Tokenizer
    """How pixels become tokens."""
    header: CacheHeader
    """Of the cache to make: samples, noise and latents."""

    batch_size: int
    """Images, or views of images, that the tokenizer reads at once."""

    workers: int
    """Processes that decode images; 0 for none."""

    stamps: np.ndarray
    """Of the files of the full set, from before any of them is read (`ImageSource.stamps`), (N, 2) int64."""

    @property
    def uses_gpu(self) -> bool:
        return self.tokenizer.device.type == "cuda"

    @property
    def _views(self) -> int:
        return self.preprocess.views.count

    @property
    def _smoothed(self) -> int:
        """Samples that are made of the latents of one view, itself included."""
        return self.header.samples // self._views

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, EncodedChunk]]:
        """Number and result of each chunk, in this order; tick is called after each batch.

        Raises: AvarcError when a worker dies, or there is not enough memory for one image.
        """
        batches = {number: self._batches(items) for number, items in chunks.items()}
        every = [batch for some in batches.values() for batch in some]
        fix = "free some memory, and run the same command again: finished chunks are kept"
        memory = nullcontext() if self.uses_gpu else heap.keep_freed_memory()
        decoding = closing(decode(self.images, self.preprocess, every, self.workers))
        with out_of_memory_as("not enough memory to encode one image", fix), memory, decoding as decoded:
            for number, some in batches.items():
                yield number, self._encode_chunk(chunks[number], islice(decoded, len(some)), tick)

    def loader(self) -> TaskLoader[EncodedChunk]:
        others = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tokenizer"}
        return partial(_load_encoder, self.tokenizer.loader(), others)

    def _batches(self, items: range) -> list[range]:
        images = max(1, self.batch_size // self._views)  # decoded at once
        return [items[start : start + images] for start in range(0, len(items), images)]

    def _encode_chunk(self, items: range, batches: Iterable[Decoded], tick: Tick) -> EncodedChunk:
        rows: list[int] = []
        digests: list[np.ndarray] = []
        unreadable: list[Unreadable] = []
        tokens = [self.header.form.none()]
        latents: list[np.ndarray] = []
        for batch in batches:
            if batch.rows:
                z_BZhw, tokens_BSL = self._encode_batch(batch)
                tokens.append(tokens_BSL)
                latents.append(z_BZhw)
            rows += batch.rows
            unreadable += batch.unreadable
            digests.append(batch.digests)
            tick(len(batch.rows) + len(batch.unreadable))
        kept = np.concatenate(latents or [np.empty((0, 0, 0, 0), dtype=np.float16)]) if self.header.latents else None
        fingerprints = Fingerprints(self.stamps[items.start : items.stop], np.concatenate(digests))
        rows_n = np.array(rows, dtype=np.int64)
        return EncodedChunk(rows_n, np.concatenate(tokens), kept, tuple(unreadable), fingerprints)

    def _encode_batch(self, batch: Decoded) -> tuple[np.ndarray, np.ndarray]:
        """Latents of view 0, (B, Z, h, w) float16, and tokens (B, S, L) uint16, or (B, S, L, Z) float32."""
        rows_n = [row for row in batch.rows for _ in range(self._views)]
        pixels_n = batch.pixels.reshape(-1, *batch.pixels.shape[2:])
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(rows_n), self.batch_size):
            part = slice(start, start + self.batch_size)
            parts += self._encode_in_memory(rows_n[part], pixels_n[part])
        z_nZhw, tokens_n = (np.concatenate(each) for each in zip(*parts, strict=True))
        return z_nZhw[:: self._views], tokens_n.reshape(len(batch.rows), *self.header.form.shape)

    def _encode_in_memory(self, rows: Sequence[int], pixels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The views, in halves where memory runs out. Raises what the allocator raises when one is too much."""
        try:
            return [self._encode(rows, pixels)]
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error) or len(rows) == 1:
                raise
        half = len(rows) // 2
        return self._encode_in_memory(rows[:half], pixels[:half]) + self._encode_in_memory(rows[half:], pixels[half:])

    @torch.inference_mode()
    def _encode(self, rows: Sequence[int], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latents (n, Z, h, w) float16 and tokens (n, S / V, L) uint16 of views, each with the row of its image.

        Continuous tokens are (n, S / V, L, Z) float32.
        """
        z_nZhw = self.tokenizer.encode(from_pixels(pixels)).float()
        samples = [self.tokenizer.quantize(z_nZhw).cpu()]
        samples += [self._noisy(z_nZhw, rows, sample).cpu() for sample in range(1, self._smoothed)]
        tokens_nSL = torch.stack(samples, dim=1).numpy()
        form = self.header.form
        expected = (len(rows), self._smoothed, *form.shape[1:])
        assert tokens_nSL.shape == expected, f"tokens are {tokens_nSL.shape}, expected {expected}"
        if form.channels:
            assert np.isfinite(tokens_nSL).all(), "token that is not a finite number"
        else:
            assert 0 <= tokens_nSL.min() <= tokens_nSL.max() < self.header.vocab_size, "token beyond the vocabulary"
        kept = z_nZhw.cpu().numpy().astype(np.float16) if self.header.latents else np.empty((0, 0, 0, 0), np.float16)
        return kept, tokens_nSL.astype(form.dtype)

    def _noisy(self, z_nZhw: Tensor, rows: Sequence[int], sample: int) -> Tensor:
        """Tokens of another sample of these latents: quantized with noise, or drawn from their distributions."""
        form = self.header.form
        shape = form.shape[1:] if form.channels else tuple(z_nZhw.shape[1:])
        noise = torch.from_numpy(np.stack([sample_noise(self.header.seed, index, sample, shape) for index in rows]))
        if form.channels:
            return self.tokenizer.draw(z_nZhw, noise)
        return self.tokenizer.quantize(z_nZhw + self.header.sigma * noise.to(z_nZhw.device))


def _load_encoder(load: Callable[[str], Tokenizer], others: Mapping[str, Any], device: str) -> ChunkEncoder:
    return ChunkEncoder(tokenizer=load(device), **others)
