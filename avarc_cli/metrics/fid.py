"""FID, sFID, Inception Score, precision and recall of generated images, by the protocol of ADM's evaluator.

Shapes: N images, D pooled features, E spatial ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avarc_cli.errors import AvarcError
from avarc_cli.metrics import arrays
from avarc_cli.metrics.features import BATCH, Features, extract
from avarc_cli.metrics.inception import Extractor
from avarc_cli.metrics.moments import Gaussian, Moments, frechet_distance
from avarc_cli.metrics.pixels import Pixels
from avarc_cli.metrics.protocol import FEWEST, Reference
from avarc_cli.metrics.scores import PART, inception_score, precision_recall
from avarc_cli.progress import Notify, StartProgress, no_message, silent
from avarc_cli.storage import replacing
from avarc_cli.words import counted
from avarc_cli.work.workers import HERE, Workers

SORTED = 0.7
"""Nats by which parts of the Inception Score may differ (`scores.inception_score`) before images count as sorted."""


@dataclass(frozen=True, eq=False)
class Scores:
    """How good generated images are."""

    images: int
    fid: float
    sfid: float | None
    inception_score: float
    precision: float | None
    recall: float | None
    reference_images: int | None
    """Behind FID; None where it is not known."""
    compared_images: int | None
    """Real images that precision and recall used."""
    is_sorted: bool
    """Whether the images come sorted by class, which lowers the Inception Score."""
    unreadable: tuple[tuple[str, str], ...]
    """(name, reason) of images of the reference that were left out."""
    reference: tuple[Gaussian, Gaussian | None]
    """Statistics of the reference: pooled, spatial."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as JSON types."""
        names = ("images", "fid", "sfid", "inception_score", "precision", "recall")
        return {name: getattr(self, name) for name in (*names, "reference_images", "compared_images")}


def evaluate(
    samples: Pixels,
    reference: Reference,
    network: Extractor,
    *,
    part: int = PART,
    shuffle: bool = False,
    keep: Path | None = None,
    batch_size: int = BATCH,
    workers: Workers = HERE,
    bar: StartProgress = silent,
    say: Notify = no_message,
) -> Scores:
    """Compare generated with real images.

    Args:
        part: images of a part, for the Inception Score.
        shuffle: divide the images into these parts at random, not by their order.
        keep: folder of the features, which a killed evaluation continues with.
        batch_size: images that the network reads at once.
        workers: who computes features; other processes need `keep`.
        bar: opens the progress of a step.
        say: called with messages for the user.
    Raises: AvarcError for a generated image that cannot be read, and as `features.extract`.
    """

    def collect(pixels: Pixels, name: str, rows: int | None = None) -> Collected:
        with bar(f"features of the {name}", len(pixels)) as shown:
            kept = None if keep is None else keep / name
            found = extract(
                pixels, network, keep=kept, batch_size=batch_size, workers=workers, progress=shown.update, say=say
            )
            return Collected.of(found, len(pixels), rows)

    generated = collect(samples, "samples")
    if generated.unreadable:
        name, reason = generated.unreadable[0]
        raise AvarcError(f"cannot read the sample '{name}'", reason, "make it again, or leave it out")
    real = None if reference.pixels is None else collect(reference.pixels, "reference", reference.compared)
    pooled, spatial, count = reference.pooled, reference.spatial, reference.count
    if pooled is None:
        assert real is not None, "a reference without statistics and images"
        real.check(reference.source)
        pooled, spatial, count = real.pooled.gaussian(), real.spatial.gaussian(), real.pooled.count
    with bar("distances", None):
        order = np.random.default_rng(0).permutation(len(generated.kept)) if shuffle else slice(None)
        score, spread = inception_score(generated.kept[order], network.output_weights, part)
        precision, recall = None, None
        if real is not None and len(real.kept) >= FEWEST:
            precision, recall = precision_recall(real.kept, generated.kept, device=network.device)
        return Scores(
            images=len(generated.kept),
            fid=frechet_distance(pooled, generated.pooled.gaussian()),
            sfid=None if spatial is None else frechet_distance(spatial, generated.spatial.gaussian()),
            inception_score=score,
            precision=precision,
            recall=recall,
            reference_images=count,
            compared_images=None if real is None else len(real.kept),
            is_sorted=spread > SORTED,
            unreadable=() if real is None else real.unreadable,
            reference=(pooled, spatial),
        )


@dataclass(frozen=True, eq=False)
class Collected:
    """Features of all images."""

    pooled: Moments
    spatial: Moments
    kept: np.ndarray
    """Pooled features of some images, (n, D) float32."""
    unreadable: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, features: Iterable[Features], count: int, kept: int | None = None) -> Collected:
        """Add up chunks of `count` images.

        Args:
            kept: number of images, evenly spaced, to keep pooled features of; None for all.
        """
        wanted = np.ones(count, dtype=bool)
        if kept is not None and kept < count:
            wanted[:] = False
            wanted[np.arange(kept) * count // kept] = True
        pooled = spatial = None
        rows, unreadable, done = list[np.ndarray](), list[tuple[str, str]](), 0
        for chunk in features:
            unreadable += chunk.unreadable
            number = len(chunk.pooled)
            if not number:
                continue
            pooled, spatial = pooled or Moments(chunk.pooled.shape[1]), spatial or Moments(chunk.spatial.shape[1])
            pooled.add(chunk.pooled)
            spatial.add(chunk.spatial)
            rows.append(chunk.pooled[wanted[done : done + number]])
            done += number
        none = np.empty((0, 0), np.float32)
        return cls(pooled or Moments(0), spatial or Moments(0), np.concatenate(rows or [none]), tuple(unreadable))

    def check(self, source: str) -> None:
        """Raises: AvarcError when too few images could be read for statistics."""
        if self.pooled.count < FEWEST:
            why = f"'{self.unreadable[0][0]}': {self.unreadable[0][1]}" if self.unreadable else ""
            raise AvarcError(f"only {counted(self.pooled.count, 'image')} of '{source}' could be read", why)


def write_statistics(path: Path, scores: Scores) -> None:
    """Write the statistics of the reference, for later evaluations. Raises: OSError."""
    pooled, spatial = scores.reference
    with replacing(path) as temporary, temporary.open("wb") as file:
        arrays.write_statistics(file, pooled, spatial, scores.reference_images)
