"""How much of an encoding run's wall time the tokenizer works, and how little memory it takes.

Photo-sized JPEGs through the published VQ-VAE's shape (random weights), with and without decoding processes.
Results: docs/encoding.md. python tests/benchmarks/encode_wait.py [IMAGES] [--json]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder import PUBLISHED
from figure_tables import Cell, Table, show, wants_json
from PIL import Image
from torch import Tensor

from avarc_cli.data import Preprocess, open_images
from avarc_cli.loaded import LoadedTokenizer
from avarc_cli.loading import load_tokenizer
from avarc_cli.tokenizers.vqvae.network import VQVAE
from avarc_cli.tokens import encode


class Timed:
    """A tokenizer that counts the seconds spent in it."""

    def __init__(self, tokenizer: LoadedTokenizer) -> None:
        self._tokenizer, self.seconds = tokenizer, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, images: Tensor) -> Tensor:
        return self._count(self._tokenizer.encode, images)

    def quantize(self, latents: Tensor) -> Tensor:
        return self._count(self._tokenizer.quantize, latents)

    def _count(self, function: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
        begin = time.perf_counter()
        result = function(argument)
        self.seconds += time.perf_counter() - begin
        return result


def photos(folder: Path, count: int) -> None:
    """JPEGs of 500 x 375 pixels, as ImageNet's are on average: smooth, with some noise."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-8, 9, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04d}.jpg", quality=90)


def main(count: int, *, as_json: bool) -> None:
    rows: list[list[Cell]] = []
    network = VQVAE(PUBLISHED).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.speed_up()
    loaded = LoadedTokenizer(
        network=network,
        family="vqvae",
        name="random",
        file="random",
        sha256="0" * 64,
        preprocess="resize-crop",
        layout=network.layout,
        load=load_tokenizer,
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "img").mkdir()
        photos(Path(folder) / "img", count)
        for workers in (0, 1):
            tokenizer = Timed(loaded)
            images, out = open_images([Path(folder) / "img"]), Path(folder) / f"{workers}.h5"
            begin = time.perf_counter()
            encode(images, tokenizer, Preprocess("resize-crop", 256), out, batch_size=2, workers=workers)
            wall = time.perf_counter() - begin
            rows.append([workers, wall / count, tokenizer.seconds / wall])
    columns = [("`--workers`", ""), ("seconds per image", ".2f"), ("of it in the tokenizer", ".1%")]
    show(Table(columns, rows), as_json=as_json, images=count)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8, as_json=as_json)
