"""Training images: decoded once when they fit in memory, augmented in batches.

Shapes: B images, S side as loaded, H side of the network's input. Pixels are uint8 until augmented.
"""

from __future__ import annotations

import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.data.random_cut import RandomCut
from avarc_cli.errors import AvarcError, UnreadableImage, UsageError
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.sampling import generator_of
from avarc_cli.settings import check_augmentation, check_short_side

IN_MEMORY_BYTES = 2 << 30
LOADED_SIDE = {"none": 1.0, "crop": 1.125, "whole": 1.0, "affine": 2.0}  # times the network's input side


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of training images.

    "crop" takes a random crop of the image's middle at 1.125 times the size. "whole" takes one of the whole image, as
    the published trainings do, when the image is decoded. "affine" rotates, scales, shears and shifts, for small
    centered objects such as digits. "none" changes nothing.
    """

    mode: str = "crop"  # "crop", "whole", "affine" or "none"
    flip: bool = False  # mirror half of the images; not for anything with a handedness
    # Half-widths of the uniform ranges of "affine":
    degrees: float = 10.0  # of rotation
    zoom: float = 0.12  # natural logarithm of the factor
    shear: float = 0.15  # tangent of the angle
    shift: float = 0.08  # fraction of the side
    short_side: tuple[float, float] = field(default=(1.125, 1.125), repr=False)
    """Of "whole": bounds of the length of the shorter side of an image, in sides of the crop."""

    def __post_init__(self) -> None:
        check_augmentation(self.mode)
        check_short_side(self.short_side)

    def __str__(self) -> str:
        """As checkpoints state it; those of earlier versions had no "whole"."""
        return repr(self) + (f", shorter side {self.short_side}" if self.mode == "whole" else "")

    @property
    def preprocess(self) -> str:
        """How an image that is not changed is cut, for `Preprocess`."""
        is_cut = self.mode == "crop" or (self.mode == "whole" and self.short_side[0] > 1)
        return "resize-crop" if is_cut else "fit"

    def loaded_side(self, size: int) -> int:
        """Side in pixels at which images are loaded for an input of `size` pixels."""
        return round(LOADED_SIDE[self.mode] * size)

    def __call__(self, pixels_BSS3: Tensor, size: int, generator: torch.Generator, rows: Rows | None = None) -> Tensor:
        """Augmented images (B, 3, size, size), float32 in [-1, 1].

        Args:
            rows: which of a batch they are; None for all.
        """
        rows = rows or Rows.whole(len(pixels_BSS3))
        x = pixels_BSS3.permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.mode == "crop":
            x = _random_crop(x, size, generator, rows)
        elif self.mode == "affine":
            matrices = rows.take(self._matrices(rows.of, generator))
            grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
            x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        if self.flip:
            mirrored = rows.take(torch.rand(rows.of, generator=generator) < 0.5)
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        return x

    def _matrices(self, count: int, generator: torch.Generator) -> Tensor:
        """Random maps from output to input coordinates, (B, 2, 3)."""

        def uniform(half_width: float) -> Tensor:
            return (2 * torch.rand(count, generator=generator) - 1) * half_width

        angle, shear = uniform(math.radians(self.degrees)), uniform(self.shear)
        zoom_x, zoom_y = uniform(self.zoom).exp(), uniform(self.zoom).exp()
        cos, sin = angle.cos(), angle.sin()
        rows = [
            torch.stack([cos * zoom_x, (shear * cos - sin) * zoom_y, 2 * uniform(self.shift)], dim=1),
            torch.stack([sin * zoom_x, (shear * sin + cos) * zoom_y, 2 * uniform(self.shift)], dim=1),
        ]
        return torch.stack(rows, dim=1)


def _random_crop(x: Tensor, size: int, generator: torch.Generator, rows: Rows) -> Tensor:
    offsets = x.shape[-1] - size + 1
    top, left = torch.randint(offsets, (2, rows.of), generator=generator)[:, rows.start : rows.stop].tolist()
    return torch.stack([im[:, t : t + size, u : u + size] for im, t, u in zip(x, top, left, strict=True)])


class TrainingImages:
    """Batches of a labelled image set, in an order that depends on (seed, step) alone, so that a training can resume.

    Batches are made on the CPU, so that order and augmentation do not depend on the device.

    Raises: UsageError without images; AvarcError for an unreadable image, here or, when the images do not fit in
    memory, in `batch`. Leaving it out would change the order of all others.
    """

    def __init__(self, images: ImageSet, size: int, augment: Augment, *, seed: int) -> None:
        if not len(images):
            raise UsageError("there are no images to train on", f"{images.source} is empty")
        self.images, self.size, self.augment, self.seed = images, size, augment, seed
        self._preprocess = self._loading()
        self._threads = ThreadPoolExecutor(4)  # Pillow releases the GIL while it decodes
        side = self._preprocess.size
        fits = len(images) * side * side * 3 <= IN_MEMORY_BYTES and augment.mode != "whole"
        self._memory = self._decode(np.arange(len(images))) if fits else None

    @property
    def subject(self) -> dict[str, str]:
        """As `TokenBatches.subject`."""
        names = "\0".join(self.images.names).encode("utf-8", "surrogatepass")
        digest = zlib.crc32(self.images.labels.tobytes(), zlib.crc32(names))
        if self._memory is not None:
            digest = zlib.crc32(self._memory.numpy().data, digest)
        of = f"{len(self)} of {self.images.source}, checksum {digest:08x}"
        return {"images": of, "augmentation": f"{self.augment}, {self.size} pixels"}

    def _loading(self) -> Preprocess:
        return Preprocess("fit", self.augment.loaded_side(self.size))

    def _preprocess_at(self, place: int) -> Preprocess:
        """How the image at this place of the training's sequence is decoded."""
        if self.augment.mode != "whole":
            return self._preprocess
        return RandomCut(size=self.size, sides=self.augment.short_side, seed=self.seed, place=place)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, step: int, rows: Rows) -> tuple[Tensor, Tensor, torch.Generator]:
        """These rows of a step's batch as augmented images (B, 3, H, H); further as `TokenBatches.batch`."""
        batch = self._rows(step, rows.of)
        generator = generator_of(self.seed, step)
        own = slice(rows.start, rows.stop)
        places = np.arange(step * rows.of, (step + 1) * rows.of)
        x = self.augment(self._pixels(batch[own], places[own]), self.size, generator, rows)
        return x, torch.from_numpy(self.images.labels[batch]).long(), generator

    def rows(self, step: int, batch_size: int) -> np.ndarray:
        """Which images a step's batch has."""
        return self._rows(step, batch_size)

    def _pixels(self, rows: np.ndarray, places: np.ndarray) -> Tensor:
        return self._decode(rows, places) if self._memory is None else self._memory[torch.from_numpy(rows)]

    def _rows(self, step: int, batch_size: int) -> np.ndarray:
        """Rows of batch `step` in an endless sequence of shuffled epochs."""
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs, offsets = np.divmod(positions, len(self))
        order = {int(e): np.random.default_rng([self.seed, int(e)]).permutation(len(self)) for e in np.unique(epochs)}
        return np.array([order[int(e)][o] for e, o in zip(epochs, offsets, strict=True)])

    def _decode(self, rows: np.ndarray, places: np.ndarray | None = None) -> Tensor:
        arrays = list(self._threads.map(self._load, rows.tolist(), (rows if places is None else places).tolist()))
        return torch.from_numpy(np.stack(arrays))

    def _load(self, row: int, place: int) -> np.ndarray:
        try:
            return self.images.load(row, self._preprocess_at(place))
        except UnreadableImage as error:
            raise AvarcError(error.what, error.why, "remove it from the training images, or replace it") from None


class ValidationImages(TrainingImages):
    """The images once, in their order and unchanged, as they are classified; batch i begins with i * batch_size."""

    def __init__(self, images: ImageSet, size: int, augment: Augment, *, batch_size: int, seed: int) -> None:
        """augment: of the training, which decides how images are cut."""
        self._mode, self._batch_size = augment.preprocess, batch_size
        super().__init__(images, size, Augment(mode="none"), seed=seed)

    def _loading(self) -> Preprocess:
        return Preprocess(self._mode, self.size)

    def _rows(self, step: int, batch_size: int) -> np.ndarray:
        return step * self._batch_size + np.arange(batch_size)
