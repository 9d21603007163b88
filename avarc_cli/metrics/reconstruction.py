"""How well a tokenizer reconstructs images: rFID, PSNR, SSIM, and how its codes are used.

Images are reconstructed in chunks (`reconstructed`), whose results are put together here.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avarc_cli.errors import UsageError, none_readable
from avarc_cli.metrics.codes import Codes, Usage
from avarc_cli.metrics.features import Network, cut
from avarc_cli.metrics.moments import Moments, frechet_distance
from avarc_cli.metrics.pixels import SetImages
from avarc_cli.metrics.protocol import FEWEST, holds_pictures
from avarc_cli.metrics.reconstructed import Reconstructed, ReconstructedFormat, Reconstructor
from avarc_cli.progress import Notify, Progress, no_message, no_progress
from avarc_cli.storage import new_folder
from avarc_cli.tokenizer import Tokenizer
from avarc_cli.work import chunks
from avarc_cli.work.chunks import Chunks
from avarc_cli.work.kept import Keep, results
from avarc_cli.work.locks import only_writer
from avarc_cli.work.workers import HERE, Workers

BATCH = 16
"""Images that are encoded and decoded at once; a choice without measurement."""

BATCHES = 16
"""Of a chunk, which is what a kill loses. Whole batches: which images share one decides about roundings."""


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
    keep: Path | None = None,
    batch_size: int = BATCH,
    workers: Workers = HERE,
    progress: Progress = no_progress,
    say: Notify = no_message,
) -> Reconstruction:
    """Encode and decode images, and compare them as uint8 pixels, rounded to the nearest.

    Args:
        network: what rFID is computed with, if it is to be.
        out: new folder for the reconstructions, as 000000.png and so on; it appears when all are there.
        keep: folder of what is finished; of the same images, tokenizer and network nothing is computed again.
        batch_size: images that are encoded and decoded at once, which decides about roundings.
        workers: who computes; other processes need `keep`.
        progress: called with (images done, images in all).
        say: called with messages for the user.
    Raises: AvarcError when no image is readable; UsageError for a decoder that needs a caption, and when other work is
        kept there; Interrupted on Ctrl-C, where what is finished is kept.
    """
    task = Reconstructor(images, tokenizer, network, batch_size, pictures=out is not None)
    kept = None if keep is None else Keep(keep, task.request(), ReconstructedFormat(), "reconstructions")
    divided, total = Chunks(len(images), BATCHES * batch_size), _Total()
    with ExitStack() as stack:
        if out is not None:
            stack.enter_context(only_writer(out))
        found = stack.enter_context(results(task, divided, kept, workers=workers, progress=progress, say=say))
        is_there = out is not None and holds_pictures(out)  # so a kill came after all, or they are another's
        folder = None if out is None or is_there else stack.enter_context(new_folder(out))
        for chunk in found:
            if folder is not None:
                chunk.write_pictures(folder, first=len(total.psnr))
            elif out is not None and not chunk.is_written(out, first=len(total.psnr)):
                raise UsageError(
                    f"'{out}' exists", "it holds other pictures", "name another folder, or delete it first"
                )
            total.add(chunk, batch_size)
        if not total.psnr:
            if keep is not None:
                chunks.delete(keep)
            raise none_readable(images.source, total.unreadable)
    return total.result(tokenizer)


class _Total:
    """What the chunks so far gave."""

    def __init__(self) -> None:
        self.psnr, self.ssim, self.unreadable = list[float](), list[float](), list[tuple[str, str]]()
        self._counts_KV: np.ndarray | None = None
        self._moments: tuple[Moments, Moments] | None = None

    def add(self, chunk: Reconstructed, batch_size: int) -> None:
        """Count a chunk too."""
        self.psnr += chunk.psnr.tolist()
        self.ssim += chunk.ssim.tolist()
        self.unreadable += chunk.unreadable
        self._counts_KV = chunk.counts_KV if self._counts_KV is None else self._counts_KV + chunk.counts_KV
        width = chunk.features_2nD.shape[2]
        if not width:
            return
        self._moments = self._moments or (Moments(width), Moments(width))
        for moments, features_nD in zip(self._moments, chunk.features_2nD, strict=True):
            for batch in cut(range(len(features_nD)), batch_size):
                moments.add(features_nD[batch.start : batch.stop])

    def result(self, tokenizer: Tokenizer) -> Reconstruction:
        rfid = None
        if self._moments is not None and len(self.psnr) >= FEWEST:
            rfid = frechet_distance(*(each.gaussian() for each in self._moments))
        return Reconstruction(
            images=len(self.psnr),
            psnr=float(np.mean(self.psnr)),
            ssim=float(np.mean(self.ssim)) if self.ssim else None,
            rfid=rfid,
            usage=() if tokenizer.channels else Codes(tokenizer.layout, tokenizer.vocab_size, self._counts_KV).usage(),
            unreadable=tuple(self.unreadable),
        )
