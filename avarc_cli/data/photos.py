"""Recognizing photographs, to warn of a model that is not made for them."""

from __future__ import annotations

from functools import partial

import numpy as np
from PIL import Image

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import read_rgb
from avarc_cli.errors import UnreadableImage

PEEK = 5  # images of a set that are looked at
LARGE = 64  # pixels of the shorter edge
COLORFUL = 24  # levels of 255 between the channels of a pixel: more than in a gray image with a tint
SHARE = 0.02  # of the pixels are colorful in a color photo


def find_photo(images: ImageSet) -> str:
    """Name and size of a large color image among a few of the set, "" if there is none."""
    for row in np.linspace(0, len(images) - 1, min(PEEK, len(images))).round().astype(int).tolist():
        try:
            image = read_rgb(partial(images.encoded.open, row), "")
        except UnreadableImage:
            continue  # reported when the image is encoded
        if min(image.size) >= LARGE and _is_colorful(image):
            return f"{images.names[row]} ({image.width} x {image.height} pixels)"
    return ""


def _is_colorful(image: Image.Image) -> bool:
    pixels_HW3 = np.asarray(image.resize((LARGE, LARGE), Image.Resampling.BOX))
    return bool((np.ptp(pixels_HW3, axis=2) > COLORFUL).mean() >= SHARE)
