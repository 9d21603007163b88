"""A random square of a training image, from all of it, as the published trainings cut them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from avarc_cli.data.preprocess import Preprocess, resize


@dataclass(frozen=True, kw_only=True)
class RandomCut(Preprocess):
    """The shorter edge is scaled to a random length with Lanczos, and a square is cut where chance wants it.

    Sources: VAR (length 1.125 sizes), 1d-tokenizer (1 size), LlamaGen's tokenizer (1 to 1.25 sizes).
    """

    mode: str = "fit"
    size: int
    sides: tuple[float, float]
    """The least and the greatest length of the shorter edge, in sizes."""
    seed: int
    place: int
    """Of the image in the sequence of all images of the training: the cut depends on it and the seed alone."""

    def _square(self, image: Image.Image, name: str) -> Image.Image:
        scale, across, down = np.random.default_rng([self.seed, self.place, 1]).random(3)
        least, most = (int(side * self.size + 1e-6) for side in self.sides)
        image = resize(image, least + int(scale * (most - least + 1)), name)
        left, top = int(across * (image.width - self.size + 1)), int(down * (image.height - self.size + 1))
        return image.crop((left, top, left + self.size, top + self.size))
