"""Units of images to tokens: decoding, here or in worker processes, and the tokenizer.

Shapes: B images of a batch, S samples, L tokens; latents (B, Z, h, w).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.environment import lacks_memory
from avarc_cli.errors import AvarcError, UnreadableImage
from avarc_cli.tokens.header import CacheHeader
from avarc_cli.tokens.noise import neighbour_noise
from avarc_cli.work.chunks import Part, Unreadable

if TYPE_CHECKING:
    from avarc_cli.likelihood import Tokenizer

MAX_WORKERS = 8


@dataclass(frozen=True)
class Decoded:
    """A batch of images: indices and pixels (B, H, H, 3) uint8 of the readable ones, and the others."""

    rows: tuple[int, ...]
    pixels: np.ndarray
    unreadable: tuple[Unreadable, ...]


class _Batches(Dataset[Decoded]):
    """The set as torch's loader wants it, one item a batch; it travels to the worker processes."""

    def __init__(self, images: ImageSet, preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess

    def __getitem__(self, batch: range) -> Decoded:
        rows: list[int] = []
        unreadable: list[Unreadable] = []
        pixels = np.empty((len(batch), self.preprocess.size, self.preprocess.size, 3), dtype=np.uint8)
        for index in batch:
            try:
                pixels[len(rows)] = self.images.load(index, self.preprocess)
                rows.append(index)
            except UnreadableImage as error:
                unreadable.append(Unreadable(index, self.images.names[index], error.why))
        return Decoded(tuple(rows), pixels[: len(rows)], tuple(unreadable))


def default_workers(device: str) -> int:
    """How many processes decode images unless the user says otherwise: one keeps a CPU busy, a GPU needs many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device == "cpu" else max(1, min(MAX_WORKERS, cores - 1))


def decode(
    images: ImageSet, preprocess: Preprocess, batches: Sequence[range], workers: int
) -> Generator[Decoded, None, None]:
    """The images of these batches, in this order, decoded ahead by so many processes (0: by this one, when asked).

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
            generator=torch.Generator(),  # the loader draws a number: not from the caller's stream
        )
    try:
        yield from loader
    except (OSError, RuntimeError) as error:
        if not workers:
            raise
        why = str(error).split("\n", maxsplit=1)[0]
        fix = "use fewer --workers (0 decodes without)"
        raise AvarcError("a process that decodes images died", why, fix) from error


def _unchanged(decoded: Any) -> Any:
    return decoded


def _begin_worker(_: int) -> None:
    """Leave interrupts to the parent, and end with it: torch's worker may wait for ever to hand over a last batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(frozen=True)
class UnitEncoder:
    """Turns units of images into parts, `batch_size` images at a time.

    A unit's batches are cut from its own images only. So its tokens do not depend on who makes it, when, or after what.
    """

    images: ImageSet
    preprocess: Preprocess
    tokenizer: Tokenizer
    header: CacheHeader
    batch_size: int

    def parts(
        self, units: Mapping[int, range], workers: int, tick: Callable[[int], None] = lambda images: None
    ) -> Iterator[tuple[int, Part]]:
        """Each unit's number and part, in this order; tick is called after each batch with the number of its images.

        Raises: AvarcError when a worker dies, or there is not enough memory for one image.
        """
        batches = {number: self._batches(unit) for number, unit in units.items()}
        every = [batch for unit in batches.values() for batch in unit]
        try:
            with closing(decode(self.images, self.preprocess, every, workers)) as decoded:
                for number, unit in batches.items():
                    yield number, self._part(islice(decoded, len(unit)), tick)
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            why = str(error).split("\n", maxsplit=1)[0]
            fix = "free some memory, and run the same again: finished units are kept"
            raise AvarcError("not enough memory to encode one image", why, fix) from error

    def _batches(self, unit: range) -> list[range]:
        return [unit[start : start + self.batch_size] for start in range(0, len(unit), self.batch_size)]

    def _part(self, unit: Iterable[Decoded], tick: Callable[[int], None]) -> Part:
        rows: list[int] = []
        unreadable: list[Unreadable] = []
        tokens = [np.empty((0, self.header.samples, self.header.num_tokens), dtype=np.uint16)]
        latents: list[np.ndarray] = []
        for batch in unit:
            for z_BZhw, tokens_BSL in self._encode_what_fits(batch.rows, batch.pixels) if batch.rows else ():
                tokens.append(tokens_BSL)
                latents.append(z_BZhw)
            rows += batch.rows
            unreadable += batch.unreadable
            tick(len(batch.rows) + len(batch.unreadable))
        kept = np.concatenate(latents or [np.empty((0, 0, 0, 0), dtype=np.float16)]) if self.header.latents else None
        return Part(np.array(rows, dtype=np.int64), np.concatenate(tokens), kept, tuple(unreadable))

    def _encode_what_fits(self, rows: Sequence[int], pixels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The batch, in halves where memory runs out. Raises what the allocator raises when one image is too much."""
        try:
            return [self._encode(rows, pixels)]
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error) or len(rows) == 1:
                raise
        half = len(rows) // 2
        return self._encode_what_fits(rows[:half], pixels[:half]) + self._encode_what_fits(rows[half:], pixels[half:])

    @torch.inference_mode()
    def _encode(self, rows: Sequence[int], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latents (B, Z, h, w) float16 and tokens (B, S, L) uint16."""
        images_B3HW = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255).mul_(2).sub_(1)  # channels last
        z_BZhw = self.tokenizer.encode(images_B3HW).float()
        tokens = [self.tokenizer.quantize(z_BZhw)]
        for sample in range(1, self.header.samples):
            tokens.append(self.tokenizer.quantize(z_BZhw + self._noise(z_BZhw, rows, sample)))
        tokens_BSL = torch.stack(tokens, dim=1).cpu().numpy()
        expected = (len(rows), self.header.samples, self.header.num_tokens)
        assert tokens_BSL.shape == expected, f"tokens are {tokens_BSL.shape}, promised were {expected}"
        assert 0 <= tokens_BSL.min() <= tokens_BSL.max() < self.header.vocab_size, "token beyond the vocabulary"
        kept = z_BZhw.cpu().numpy().astype(np.float16) if self.header.latents else np.empty((0, 0, 0, 0), np.float16)
        return kept, tokens_BSL.astype(np.uint16)

    def _noise(self, z_BZhw: Tensor, rows: Sequence[int], sample: int) -> Tensor:
        shape = tuple(z_BZhw.shape[1:])
        noise = np.stack([neighbour_noise(self.header.seed, index, sample, shape) for index in rows])
        return self.header.sigma * torch.from_numpy(noise).to(z_BZhw.device)
