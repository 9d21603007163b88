"""An image of which a part is to be painted, and the mask that says which. There is no torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from avarc_cli.data.preprocess import Preprocess, load_rgb
from avarc_cli.errors import UnreadableImage, UsageError

_BOX = re.compile(r"(outside:)?\s*" + r"\s*,\s*".join([r"(\d{1,6})"] * 4) + r"\s*")
WHITE = 128
"""Brightness from which on a pixel of a mask counts as white."""


@dataclass(frozen=True, eq=False)
class Painting:
    """An image, upright, and its mask in the same size, white where it is to be painted; both RGB."""

    name: str
    image: Image.Image
    mask: Image.Image

    @classmethod
    def read(cls, image: Path, mask: str) -> Painting:
        """Read an image and its mask.

        Args:
            mask: a box "x0,y0,x1,y1" in pixels of the image, of which x1 and y1 are the first that are not painted;
                "outside:x0,y0,x1,y1" for all but the box; or the path of a picture, white where to paint.
        Raises: UsageError for a file that is not an image, and a mask that does not fit, or covers nothing or all.
        """
        picture = _load(image)
        found = _BOX.fullmatch(mask)
        white = _read(mask, picture) if found is None else _box(found, mask, picture)
        painted = np.asarray(white.convert("L")) >= WHITE
        if painted.all() or not painted.any():
            raise _covers("all of" if painted.any() else "nothing of", mask, image)
        return cls(str(image), picture, white)

    def prepared(self, preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (H, H, 3) uint8 as a tokenizer reads them, and which of them are to be painted, (H, H) bool.

        Raises: UnreadableImage as for any image; UsageError where the cropped mask covers nothing or all.
        """
        pixels = preprocess.apply(self.image, self.name)
        painted = preprocess.apply(self.mask, self.name)[..., 0] >= WHITE
        if painted.all() or not painted.any():
            raise _covers("all of" if painted.any() else "nothing of", "the mask", f"{self.name}, as it is cropped")
        return pixels, painted


def _load(path: Path) -> Image.Image:
    """An image of which everything depends, unlike one of many. Raises: UsageError."""
    try:
        return load_rgb(path)
    except UnreadableImage as error:
        raise UsageError(error.what, error.why, error.fix or "name an image") from error


def _read(mask: str, picture: Image.Image) -> Image.Image:
    """A mask from a file. Raises: UsageError for a file that is not an image, or of another size."""
    if not Path(mask).exists():
        fix = "write --mask x0,y0,x1,y1 in pixels, or name a picture that is white where to paint"
        raise UsageError(f"cannot read --mask '{mask}'", "it is neither a box nor a file", fix)
    white = _load(Path(mask))
    if white.size != picture.size:
        sizes = [f"{each.width} x {each.height}" for each in (white, picture)]
        raise UsageError(
            f"the mask '{mask}' does not fit the image",
            f"it has {sizes[0]} pixels, the image {sizes[1]}",
            "make them equally large",
        )
    return white


def _box(found: re.Match[str], mask: str, picture: Image.Image) -> Image.Image:
    """A mask with a box. Raises: UsageError for one that is empty, or not inside the image."""
    x0, y0, x1, y1 = (int(each) for each in found.groups()[1:])
    if not (x0 < x1 <= picture.width and y0 < y1 <= picture.height):
        raise UsageError(
            f"there is no box --mask {mask}",
            f"it is x0,y0,x1,y1 with x0 < x1 <= {picture.width} and y0 < y1 <= {picture.height}, the image's size",
        )
    inside, outside = ("black", "white") if found[1] else ("white", "black")
    white = Image.new("RGB", picture.size, outside)
    ImageDraw.Draw(white).rectangle((x0, y0, x1 - 1, y1 - 1), fill=inside)
    return white


def _covers(part: str, mask: str, image: Path | str) -> UsageError:
    fix = "name a mask that is white where to paint and black where to keep"
    return UsageError(f"nothing to paint: {mask} covers {part} {image}", fix=fix)
