"""One unit of images to tokens: decoding, here or in worker processes, and the tokenizer.

Shapes: B images of a batch, S samples, L tokens; latents (B, Z, h, w).
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
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
from avarc_cli.tokens.parts import Part, Unreadable

if TYPE_CHECKING:
    from avarc_cli.likelihood import Tokenizer


@dataclass(frozen=True)
class Decoded:
    """An image of the set: its pixels (H, H, 3) uint8, or the reason why there are none."""

    index: int
    name: str
    pixels: np.ndarray | None
    reason: str = ""


class _Images(Dataset[Decoded]):
    """The set as torch's loader wants it; it travels to the worker processes."""

    def __init__(self, images: ImageSet, preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess

    def __getitem__(self, index: int) -> Decoded:
        name = self.images.names[index]
        try:
            return Decoded(index, name, self.preprocess(self.images.paths[index]))
        except UnreadableImage as error:
            return Decoded(index, name, None, error.why)


def decode(
    images: ImageSet, preprocess: Preprocess, indices: Sequence[int], workers: int
) -> Generator[Decoded, None, None]:
    """The images of these indices, in this order, decoded by so many processes (0: by this one).

    Raises: AvarcError when a worker cannot be started or dies.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes")  # more workers than cores: the user's choice
        loader = DataLoader(
            _Images(images, preprocess),
            batch_size=None,
            sampler=indices,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_interrupts_to_parent,
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


def _leave_interrupts_to_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class UnitEncoder:
    """Turns decoded images into a part, `batch_size` at a time."""

    tokenizer: Tokenizer
    header: CacheHeader
    batch_size: int

    def part(self, unit: Iterable[Decoded], tick: Callable[[], None]) -> Part:
        """Encode the images of one unit; tick is called after each."""
        rows: list[int] = []
        unreadable: list[Unreadable] = []
        batch: list[Decoded] = []
        tokens = [np.empty((0, self.header.samples, self.header.num_tokens), dtype=np.uint16)]
        latents: list[np.ndarray] = []

        def encode_batch() -> None:
            for z_BZhw, tokens_BSL in self._encode_what_fits(batch):
                tokens.append(tokens_BSL)
                latents.append(z_BZhw)
            rows.extend(image.index for image in batch)
            batch.clear()

        for image in unit:
            if image.pixels is None:
                unreadable.append(Unreadable(image.index, image.name, image.reason))
            else:
                batch.append(image)
            if len(batch) == self.batch_size:
                encode_batch()
            tick()
        if batch:
            encode_batch()
        kept = np.concatenate(latents or [np.empty((0, 0, 0, 0), dtype=np.float16)]) if self.header.latents else None
        return Part(np.array(rows, dtype=np.int64), np.concatenate(tokens), kept, tuple(unreadable))

    def _encode_what_fits(self, batch: Sequence[Decoded]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The batch, in halves where memory runs out. Raises what the allocator raises when one image is too much."""
        try:
            return [self._encode(batch)]
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error) or len(batch) == 1:
                raise
        half = len(batch) // 2
        return self._encode_what_fits(batch[:half]) + self._encode_what_fits(batch[half:])

    @torch.inference_mode()
    def _encode(self, batch: Sequence[Decoded]) -> tuple[np.ndarray, np.ndarray]:
        """Latents (B, Z, h, w) float16 and tokens (B, S, L) uint16."""
        pixels = torch.from_numpy(np.stack([image.pixels for image in batch if image.pixels is not None]))
        images_B3HW = pixels.permute(0, 3, 1, 2).contiguous().float().div(255).mul(2).sub(1)
        z_BZhw = self.tokenizer.encode(images_B3HW).float()
        tokens = [self.tokenizer.quantize(z_BZhw)]
        for sample in range(1, self.header.samples):
            tokens.append(self.tokenizer.quantize(z_BZhw + self._noise(z_BZhw, batch, sample)))
        tokens_BSL = torch.stack(tokens, dim=1).cpu().numpy()
        expected = (len(batch), self.header.samples, self.header.num_tokens)
        assert tokens_BSL.shape == expected, f"tokens are {tokens_BSL.shape}, promised were {expected}"
        assert 0 <= tokens_BSL.min() <= tokens_BSL.max() < self.header.vocab_size, "token beyond the vocabulary"
        return z_BZhw.cpu().numpy().astype(np.float16), tokens_BSL.astype(np.uint16)

    def _noise(self, z_BZhw: Tensor, batch: Sequence[Decoded], sample: int) -> Tensor:
        shape = tuple(z_BZhw.shape[1:])
        noise = np.stack([neighbour_noise(self.header.seed, image.index, sample, shape) for image in batch])
        return self.header.sigma * torch.from_numpy(noise).to(z_BZhw.device)
