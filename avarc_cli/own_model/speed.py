"""How long a step of training takes on this machine, from a few that are thrown away."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from avarc_cli.data.datasets import ImageSet
from avarc_cli.loading import load_tokenizer
from avarc_cli.model_spec import ModelSpec
from avarc_cli.own_model.sizes import GENERATOR_FAMILY, TOKENIZER_FAMILY, Sizes
from avarc_cli.train.generator import train_generator
from avarc_cli.train.images import Augment
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.tokenizer import train_tokenizer

STEPS = 6  # of which the first, which takes longer, is not counted
IMAGES = 128  # at most


@dataclass(frozen=True)
class Speed:
    """Seconds of a step."""

    tokenizer: float
    generator: float


def measure(images: ImageSet, sizes: Sizes, augment: Augment, device: torch.device) -> Speed:
    """Train both for a few steps, in a temporary folder.

    Raises: as `train_tokenizer` and `train_generator`.
    """
    few = images.sample(IMAGES, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        vq, gpt = Path(folder) / "tokenizer.safetensors", Path(folder) / "generator.safetensors"
        clock, second = _Clock(), _Clock()
        train_tokenizer(
            few,
            vq,
            dict(sizes.tokenizer),
            Recipe(steps=STEPS, batch_size=sizes.tokenizer_batch, lr=1e-5),
            image_size=sizes.image_size,
            family=TOKENIZER_FAMILY,
            augment=augment,
            device=device,
            progress=clock,
        )
        reader = load_tokenizer(ModelSpec(str(vq), device=str(device)))
        recipe = Recipe(steps=STEPS, batch_size=sizes.generator_batch, lr=1e-5)
        train_generator(
            few, gpt, reader, sizes.generator, recipe, family=GENERATOR_FAMILY, augment=augment, progress=second
        )
    return Speed(clock.seconds, second.seconds)


class _Clock:
    """A `MetricsProgress` that notes when steps were done."""

    def __init__(self) -> None:
        self._done = [(0, time.perf_counter())]

    def __call__(self, done: int, values: dict[str, float], /) -> None:
        self._done.append((done, time.perf_counter()))

    @property
    def seconds(self) -> float:
        """Median time of a step after the first."""
        times = self._done[1:] if len(self._done) > 2 else self._done
        return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(times))
