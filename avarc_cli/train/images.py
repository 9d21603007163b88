"""Training images: decoded once when they fit in memory, augmented in batches.

Shapes: B images, S side as loaded, H side of the network's input. Pixels are uint8 until augmented.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.data.random_cut import RandomCut
from avarc_cli.errors import AvarcError, UsageError, none_readable
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.sampling import generator_of
from avarc_cli.settings import check_augmentation, check_short_side
from avarc_cli.train.ahead import Ahead
from avarc_cli.train.left_out import LeftOut
from avarc_cli.train.listing import Listing
from avarc_cli.train.order import rows_at, stand_ins
from avarc_cli.train.pixels import Pixels

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

    Batches are made on the CPU, so that order and augmentation do not depend on the device, and ahead of the step that
    needs them. Where an image cannot be read, another one stands in for it, drawn from (seed, step, row); the order of
    all others stays as it is.
    """

    def __init__(
        self,
        images: ImageSet,
        size: int,
        augment: Augment,
        *,
        seed: int,
        left_out: LeftOut | None = None,
        within_class: bool = True,
    ) -> None:
        """All processes of a training make one.

        Args:
            left_out: what the images that cannot be read are added to.
            within_class: whether an image stands in for others of its class only. It must where labels matter.
        Raises: UsageError without images; AvarcError where none is readable, or none of a class, `within_class`. If
            the images are not in memory, `batch` finds this out.
        """
        if not len(images):
            raise UsageError("there are no images to train on", f"{images.source} is empty")
        self.images, self.size, self.augment, self.seed = images, size, augment, seed
        self.left_out, self._within_class = left_out or LeftOut(), within_class
        self._preprocess = self._loading()
        fits = len(images) * self._preprocess.size**2 * 3 <= IN_MEMORY_BYTES and augment.mode != "whole"
        self.pixels = Pixels(images, self._preprocess_at, in_memory=fits)
        self._note_unreadable()
        of_each = {int(images.labels[row]) if within_class else 0: row for row in self.pixels.unreadable}
        for row in of_each.values():
            self._check_readable(row)
        self._ahead = Ahead(self._make)

    @property
    def subject(self) -> dict[str, str]:
        """As `TokenBatches.subject`."""
        names = "\0".join(self.images.names).encode("utf-8", "surrogatepass")
        digest = zlib.crc32(self.images.labels.tobytes(), zlib.crc32(names))
        if self.pixels.memory is not None:
            digest = zlib.crc32(self.pixels.memory.data, digest)
        of = f"{len(self)} of {self.images.source}, checksum {digest:08x}"
        return {"images": of, "augmentation": f"{self.augment}, {self.size} pixels"}

    def listing(self) -> Listing:
        """What the images are, one by one."""
        memory = self.pixels.memory
        digests = None if memory is None else np.array([zlib.crc32(image.data) for image in memory], dtype=np.uint32)
        return Listing(self.images.names, self.images.labels, self.images.class_names, digests)

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
        made = self._ahead((step, rows), self._following(step, rows))
        self._note_unreadable()
        return made

    def rows(self, step: int, batch_size: int) -> np.ndarray:
        """Which images a step's batch has, before others stand in for them."""
        return self._rows(self._places(step, batch_size))

    def _following(self, step: int, rows: Rows) -> tuple[int, Rows] | None:
        """What is likely to be asked for after these rows."""
        return step + 1, rows

    def _make(self, key: tuple[int, Rows]) -> tuple[Tensor, Tensor, torch.Generator]:
        step, rows = key
        places = self._places(step, rows.of)
        chosen, own = self._rows(places), slice(rows.start, rows.stop)
        pixels_BSS3 = torch.from_numpy(self.pixels.load(chosen[own], places[own], self._stand_ins))
        generator = generator_of(self.seed, step)
        x = self.augment(pixels_BSS3, self.size, generator, rows)
        return x, torch.from_numpy(self.images.labels[chosen]).long(), generator

    def _places(self, step: int, batch_size: int) -> np.ndarray:
        return np.arange(step * batch_size, (step + 1) * batch_size)

    def _rows(self, places: np.ndarray) -> np.ndarray:
        return rows_at(places, len(self), self.seed)

    def _stand_ins(self, row: int, place: int) -> Iterator[int]:
        """What may stand in for an image that cannot be read. Raises, in the end: AvarcError."""
        yield from stand_ins(self._alike(row), place, self.seed).tolist()
        self._check_readable(row)

    def _alike(self, row: int) -> np.ndarray:
        """The images that may stand in for one."""
        labels = self.images.labels
        return np.flatnonzero(labels == labels[row]) if self._within_class else np.arange(len(labels))

    def _check_readable(self, row: int) -> None:
        """Raises: AvarcError where no image is readable that may stand in for this one."""
        unreadable = self.pixels.unreadable
        if all(other in unreadable for other in self._alike(row).tolist()):
            found = [(self.images.names[other], why) for other, why in sorted(unreadable.items())]
            if len(found) == len(self.images):
                raise none_readable(self.images.source, found)
            name = self.images.class_names[self.images.labels[row]]
            raise AvarcError(
                f"no image of '{name}' is readable",
                f"'{self.images.names[row]}': {unreadable[row]}",
                "repair its images, or remove them all",
            )

    def _note_unreadable(self) -> None:
        for row, why in sorted(self.pixels.unreadable.items()):
            self.left_out.add(self.images.names[row], why)


class ValidationImages(TrainingImages):
    """The readable images once, in their order and unchanged, as they are classified; batch i begins with the
    i * batch_size-th.
    """

    def __init__(
        self,
        images: ImageSet,
        size: int,
        augment: Augment,
        *,
        batch_size: int,
        seed: int,
        left_out: LeftOut | None = None,
    ) -> None:
        """augment: of the training, which decides how images are cut. The others, Raises: as for `TrainingImages`."""
        self._mode, self._batch_size = augment.preprocess, batch_size
        super().__init__(images, size, Augment(mode="none"), seed=seed, left_out=left_out, within_class=False)
        self.pixels.find_unreadable()
        self._note_unreadable()
        self._readable = np.setdiff1d(np.arange(len(images)), list(self.pixels.unreadable))
        if not len(self._readable):
            self._check_readable(0)

    def __len__(self) -> int:
        return len(self._readable)

    def _loading(self) -> Preprocess:
        return Preprocess(self._mode, self.size)

    def _following(self, step: int, rows: Rows) -> tuple[int, Rows] | None:
        ends = (step + 2) * self._batch_size  # the next batch, unless it is smaller
        return (step + 1, rows) if ends <= len(self) else None

    def _places(self, step: int, batch_size: int) -> np.ndarray:
        return step * self._batch_size + np.arange(batch_size)

    def _rows(self, places: np.ndarray) -> np.ndarray:
        return self._readable[places]


def first_readable(images: ImageSet, count: int) -> ImageSet:
    """The first readable images, up to this number."""
    pixels = Pixels(images, lambda place: Preprocess("fit", 1), in_memory=False)
    rows = islice(filter(pixels.is_readable, range(len(images))), count)
    return images.take(np.fromiter(rows, np.int64))
