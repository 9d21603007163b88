"""How well a tokenizer reconstructs images: rFID, PSNR, SSIM, and how its codes are used.

Shapes: B images of a batch, H pixels a side, L tokens, V codes.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from avarc_cli.errors import none_readable
from avarc_cli.layout import TokenLayout
from avarc_cli.metrics.features import Network
from avarc_cli.metrics.moments import Moments, frechet_distance
from avarc_cli.metrics.pixels import SetImages
from avarc_cli.metrics.protocol import FEWEST
from avarc_cli.metrics.similarity import WINDOW, psnr, ssim
from avarc_cli.progress import Progress, no_progress
from avarc_cli.storage import new_folder
from avarc_cli.tokenizer import Tokenizer
from avarc_cli.tokens.reconstruct import from_pixels, to_pixels

BATCH = 16
"""Images that are encoded and decoded at once; a choice without measurement."""


@dataclass(frozen=True)
class Usage:
    """How the tokens of a grid, or of all, use the codes."""

    where: str
    """The grid, "4 x 4", or "all tokens"."""
    tokens: int
    """That were counted."""
    used: int
    """Different codes among them."""
    entropy: float
    """Of their distribution, in bits."""

    @property
    def perplexity(self) -> float:
        """Codes that would have this entropy if all were as frequent."""
        return float(2**self.entropy)

    @classmethod
    def of(cls, where: str, counts_V: np.ndarray) -> Usage:
        """That of codes with these frequencies."""
        share = counts_V[counts_V > 0] / counts_V.sum()
        entropy = float(-(share * np.log2(share)).sum())
        return cls(where, int(counts_V.sum()), len(share), max(0.0, entropy))


class Codes:
    """Counts codes, grid by grid."""

    def __init__(self, layout: TokenLayout, vocab_size: int) -> None:
        self._ends = layout.grid_ends or (layout.num_tokens,)
        self._names = [f"{rows} x {columns}" for rows, columns in layout.grids] or ["all tokens"]
        self._counts_KV = np.zeros((len(self._ends), vocab_size), dtype=np.int64)

    def add(self, tokens_BL: np.ndarray) -> None:
        """Count these tokens too."""
        for counts_V, tokens in zip(self._counts_KV, np.split(tokens_BL, self._ends[:-1], axis=1), strict=True):
            counts_V += np.bincount(tokens.reshape(-1), minlength=len(counts_V))

    def usage(self) -> tuple[Usage, ...]:
        """Of each grid, and, where there are several, of all."""
        each = [Usage.of(name, counts_V) for name, counts_V in zip(self._names, self._counts_KV, strict=True)]
        return (*each, Usage.of("all tokens", self._counts_KV.sum(axis=0))) if len(each) > 1 else tuple(each)


@dataclass(frozen=True)
class Reconstruction:
    """How well images were reconstructed, in the mean over them."""

    images: int
    psnr: float
    """In dB."""
    ssim: float | None
    """None for images that are smaller than its window."""
    rfid: float | None
    """Between the images and their reconstructions; None without the Inception network."""
    usage: tuple[Usage, ...]
    """Empty where tokens are continuous."""
    unreadable: tuple[tuple[str, str], ...] = field(default=())
    """(name, reason) of the images that were left out."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as JSON types."""
        usage = [vars(each) | {"perplexity": each.perplexity} for each in self.usage]
        return {name: getattr(self, name) for name in ("images", "psnr", "ssim", "rfid")} | {"codes": usage}


def reconstruct(
    images: SetImages,
    tokenizer: Tokenizer,
    network: Network | None = None,
    out: Path | None = None,
    *,
    batch_size: int = BATCH,
    progress: Progress = no_progress,
) -> Reconstruction:
    """Encode and decode images, and compare them as uint8 pixels, rounded to the nearest.

    Args:
        network: what rFID is computed with, if it is to be.
        out: new folder for the reconstructions, as 000000.png and so on; it appears when all are there.
        progress: called with (images done, images in all).
    Raises: AvarcError when no image is readable; UsageError for a decoder that needs a caption.
    """
    measured = _Measured(tokenizer, network, images.side)
    batches = [range(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
    unreadable, done = list[tuple[str, str]](), 0
    with nullcontext() if out is None else new_folder(out) as folder:
        for batch, loaded in zip(batches, images.read(batches), strict=True):
            first = len(measured.psnr)
            again_BHH3 = measured.add(loaded.pixels) if len(loaded.pixels) else ()
            for number, pixels in enumerate(again_BHH3, start=first):
                if folder is not None:
                    Image.fromarray(pixels).save(folder / f"{number:06d}.png")
            unreadable += loaded.unreadable
            done += len(batch)
            progress(done, len(images))
        if not measured.psnr:
            raise none_readable(images.source, unreadable)
    return measured.result(tuple(unreadable))


class _Measured:
    """What the images so far gave."""

    def __init__(self, tokenizer: Tokenizer, network: Network | None, side: int) -> None:
        self.psnr, self._ssim = list[float](), list[float]()
        self._tokenizer, self._network, self._has_ssim = tokenizer, network, side >= WINDOW
        self._codes = None if tokenizer.channels else Codes(tokenizer.layout, tokenizer.vocab_size)
        self._moments: tuple[Moments, Moments] | None = None

    @torch.inference_mode()
    def add(self, pixels_BHH3: np.ndarray) -> np.ndarray:
        """Reconstruct these images, and measure; returns the reconstructions."""
        tokenizer = self._tokenizer
        tokens = tokenizer.quantize(tokenizer.encode(from_pixels(pixels_BHH3)))
        again_BHH3 = to_pixels(tokenizer.decode(tokens))
        if self._codes is not None:
            self._codes.add(tokens.cpu().numpy())
        self.psnr += psnr(pixels_BHH3, again_BHH3).tolist()
        if self._has_ssim:
            self._ssim += ssim(pixels_BHH3, again_BHH3).tolist()
        if self._network is not None:
            pooled = [self._network(each)[0] for each in (pixels_BHH3, again_BHH3)]
            width = pooled[0].shape[1]
            self._moments = self._moments or (Moments(width), Moments(width))
            for moments, features in zip(self._moments, pooled, strict=True):
                moments.add(features)
        return again_BHH3

    def result(self, unreadable: tuple[tuple[str, str], ...]) -> Reconstruction:
        rfid = None
        if self._moments is not None and len(self.psnr) >= FEWEST:
            rfid = frechet_distance(*(each.gaussian() for each in self._moments))
        return Reconstruction(
            images=len(self.psnr),
            psnr=float(np.mean(self.psnr)),
            ssim=float(np.mean(self._ssim)) if self._has_ssim else None,
            rfid=rfid,
            usage=() if self._codes is None else self._codes.usage(),
            unreadable=unreadable,
        )
