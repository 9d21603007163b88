"""Which views of an image are encoded: the image alone, its mirror image too, or ten crops."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from avarc_cli.errors import UsageError

SINGLE, FLIP, TEN_CROP = "single", "flip", "ten-crop"
COUNT = {SINGLE: 1, FLIP: 2, TEN_CROP: 10}
DEFAULT_RANGE = 1.1  # the other one that LlamaGen's codes were made with is 1.05
MAX_RANGE = 2.0  # beyond it, the corners' crops would leave out parts of the image


@dataclass(frozen=True)
class Views:
    """The views of an image. View 0 stands for the image wherever only one is used, such as in explanations.

    Raises: UsageError for a range out of bounds.
    """

    kind: str = SINGLE
    """"single", the image as `Preprocess` describes it;
    "flip", this and its mirror image;
    "ten-crop", crops of an image made `crop_range` times as large: center, top left, top right, bottom left, bottom
    right, then the same of its mirror image. These are torchvision's TenCrop, but the center comes first."""

    crop_range: float = DEFAULT_RANGE
    """Side of the image that ten crops are cut from, as a multiple of theirs; rounded down to whole pixels."""

    def __post_init__(self) -> None:
        if not 1 <= self.crop_range <= MAX_RANGE:
            why = "the crops must fit into the image, and those of its corners cover it"
            raise UsageError(f"--crop-range is {self.crop_range}", why, f"name a number from 1 to {MAX_RANGE:g}")

    @classmethod
    def choose(cls, *, flip: bool, ten_crop: bool, crop_range: float | None = None) -> Views:
        """What the options ask for. Raises: UsageError for options that exclude each other."""
        if flip and ten_crop:
            why = "five of the ten crops are mirrored already"
            raise UsageError("--flip and --ten-crop exclude each other", why, "leave out one of them")
        if crop_range is not None and not ten_crop:
            raise UsageError("no use for --crop-range", "only --ten-crop cuts crops", "add --ten-crop")
        kind = TEN_CROP if ten_crop else FLIP if flip else SINGLE
        return cls(kind, DEFAULT_RANGE if crop_range is None else crop_range)

    @classmethod
    def parse(cls, text: str) -> tuple[Views, int | None]:
        """What `describe` wrote, and the size if it says so. Raises: UsageError for any other text."""
        if text == FLIP:
            return cls(FLIP), None
        found = re.fullmatch(rf"{TEN_CROP} (\d{{1,9}}), range ([\d.]+)", text)
        try:
            if found is not None:
                return cls(TEN_CROP, float(found[2])), int(found[1])
        except ValueError:
            pass
        raise UsageError(f"unknown views '{text}'")

    def describe(self, size: int) -> str:
        """What the description of the preprocessing says of several views of this size; "" for a single one."""
        return {SINGLE: "", FLIP: FLIP}.get(self.kind, f"{TEN_CROP} {size}, range {self.crop_range}")

    @property
    def count(self) -> int:
        """Number of views."""
        return COUNT[self.kind]

    def samples(self, smoothing: int) -> int:
        """Token sequences of an image, where this many smoothing samples are asked for, the image itself included.

        Raises: UsageError when there are several views as well.
        """
        if self.kind == SINGLE:
            return smoothing
        if smoothing > 1:
            why = f"a cache holds either smoothing samples or the {self.count} views of --{self.kind}"
            raise UsageError(f"--{self.kind} and --samples exclude each other", why, "leave out one of them")
        return self.count

    def side(self, size: int) -> int:
        """Pixels a side of the square that views of this size are cut from."""
        return int(size * self.crop_range) if self.kind == TEN_CROP else size

    def cut(self, square: Image.Image, size: int) -> Iterator[Image.Image]:
        """The views, size x size, of a square image of `side(size)` pixels."""
        yield from self._of_one(square, size)
        if self.kind != SINGLE:
            yield from self._of_one(square.transpose(Image.Transpose.FLIP_LEFT_RIGHT), size)

    def _of_one(self, square: Image.Image, size: int) -> Iterator[Image.Image]:
        """The views of the image itself, or of its mirror image."""
        return _five_crops(square, size) if self.kind == TEN_CROP else iter([square])


SINGLE_VIEW = Views()


def _five_crops(square: Image.Image, size: int) -> Iterator[Image.Image]:
    edge = square.width - size
    middle = round(edge / 2.0)  # halves to even, as torchvision does
    corners = ((middle, middle), (0, 0), (edge, 0), (0, edge), (edge, edge))
    return (square.crop((left, top, left + size, top + size)) for left, top in corners)
