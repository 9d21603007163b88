"""A tokenizer whose tokens can be computed by hand, and small images for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from avarc_cli.data import ImageSet, open_images
from avarc_cli.layout import TokenLayout


class StubTokenizer:
    """8-pixel images, latents (3, 2, 2), scales of 1 and 2, 64 codes: brightness in 64 steps."""

    name = "stub"
    file = "/somewhere/stub.safetensors"
    sha256 = "a" * 64
    layout = TokenLayout.multi_scale((1, 2))
    image_size = 8
    vocab_size = 64
    channels = 0
    device = torch.device("cpu")
    precision = "fp32"
    preprocess = "none"
    inferred: Mapping[str, str] = {}

    def __init__(self, on_encode: Callable[[], object] = dict) -> None:
        self.on_encode = on_encode

    def encode(self, images: Tensor) -> Tensor:
        self.on_encode()
        return avg_pool2d(images, 4)

    def quantize(self, latents: Tensor) -> Tensor:
        fine = latents.mean(1).flatten(1)
        return ((torch.cat([fine.mean(1, keepdim=True), fine], 1) + 1) * 31.5).clamp(0, 63).long()

    def draw(self, latents: Tensor, noise_BLZ: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def loader(self) -> Callable[[str], StubTokenizer]:
        return partial(_copy, self)


class StubVAE(StubTokenizer):
    """Four continuous tokens of three channels, without positions: the colors of the quarters of the image.

    The standard deviation of a token's channels is a tenth of their mean's absolute value.
    """

    name = "stub-vae"
    layout = TokenLayout.sequence(4)
    vocab_size = 0
    channels = 3

    def quantize(self, latents: Tensor) -> Tensor:
        return latents.flatten(2).transpose(1, 2)

    def draw(self, latents: Tensor, noise_BLZ: Tensor) -> Tensor:
        mean = self.quantize(latents)
        return mean + mean.abs() / 10 * noise_BLZ


def _copy(tokenizer: StubTokenizer, device: str) -> StubTokenizer:
    return tokenizer


def make_images(folder: Path, count: int) -> ImageSet:
    """Random 8 x 8 images in two class folders."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for row, image in enumerate(pixels):
        path = folder / ("odd" if row % 2 else "even") / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return open_images([folder])
