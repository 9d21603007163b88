"""What reading images costs a training: steps per second, and memory of several processes.

    python tests/benchmarks/training_data.py speed [--json]
    torchrun --nproc-per-node 2 tests/benchmarks/training_data.py memory [--apart]

`speed` trains a small tokenizer on JPEGs of 500 x 375 pixels in interleaved rounds: all images in memory; decoded while
the step before is computed; and decoded when a step needs them, as before. It shows steps per second, and the part of
the time that steps wait for images. `memory` prints what the pixels add to each process: all that is mapped, and its
share of it (Rss and Pss of /proc/self/smaps_rollup); --apart: each process has its own.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from figure_tables import Cell, Table, show
from PIL import Image

from avarc_cli.data.datasets import ImageSet, open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.layers import collectives
from avarc_cli.layers.rows import Rows
from avarc_cli.train import images as training_images
from avarc_cli.train.images import Augment, TrainingImages
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.tokenizer import train_tokenizer

IMAGES, ROUNDS, STEPS, BATCH = 192, 9, 11, 16
SHAPE = {"vocab_size": 64, "z_channels": 8, "ch": 32, "ch_mult": (1, 2), "patch_nums": (1, 2, 4, 8), "blocks": 1}
SIZE = 16
MEMORY_SIDE = 512


def photos(folder: Path, count: int) -> ImageSet:
    """JPEGs of colored noise in which neighbors are alike."""
    rng = np.random.default_rng(0)
    (folder / "a").mkdir()
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / "a" / f"{number:04}.jpg", quality=90)
    return open_images([folder])


def measure(images: ImageSet, *, in_memory: bool, ahead: bool) -> tuple[float, float]:
    """Steps per second, and the part of the time that they wait for images: of all steps but the first."""
    ends: list[float] = []
    waits: list[float] = []
    batch = TrainingImages.batch

    def timed(self: TrainingImages, step: int, rows: Rows) -> Any:
        start = time.perf_counter()
        made = batch(self, step, rows)
        waits.append(time.perf_counter() - start)
        return made

    with ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "x.safetensors"
        stack.enter_context(mock.patch.object(TrainingImages, "batch", timed))
        if not in_memory:
            stack.enter_context(mock.patch.object(training_images, "IN_MEMORY_BYTES", 0))
        if not ahead:
            stack.enter_context(mock.patch.object(TrainingImages, "_following", return_value=None))
        train_tokenizer(
            images,
            out,
            SHAPE,
            Recipe(steps=STEPS, batch_size=BATCH, lr=1e-4),
            image_size=SIZE,
            family="vqvae",
            augment=Augment(),
            device=torch.device("cpu"),
            progress=lambda done, values: ends.append(time.perf_counter()),
        )
    seconds = ends[-1] - ends[0]
    return (len(ends) - 1) / seconds, sum(waits[1:]) / seconds


def speed(*, as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        images = photos(Path(folder), IMAGES)
        kinds = {
            "in memory": {"in_memory": True, "ahead": True},
            "decoded ahead": {"in_memory": False, "ahead": True},
            "decoded when a step needs them, as before": {"in_memory": False, "ahead": False},
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for name, how in kinds.items():
                found[name].append(measure(images, **how))
    rows: list[list[Cell]] = []
    for name, rounds in found.items():
        rates, waits = zip(*rounds, strict=True)
        rows.append([name, min(rates), statistics.median(rates), max(rates), statistics.median(waits)])
    columns = [("images", ""), ("steps/s, least", ".2f"), ("median", ".2f"), ("most", ".2f")]
    show(Table([*columns, ("of the time, steps waited for images", ".0%")], rows), as_json=as_json)


def memory(apart: bool) -> None:
    def kilobytes() -> dict[str, int]:
        text = Path("/proc/self/smaps_rollup").read_text()
        return {name: int(kb) for name, kb in re.findall(r"^(Rss|Pss): +(\d+) kB", text, re.MULTILINE)}

    with collectives.joined(torch.device("cpu")), ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(collectives.by_first(lambda: own))
        if collectives.rank() == 0:
            photos(folder, IMAGES)
        collectives.from_all(None)
        images = open_images([folder])
        images.load(0, Preprocess("fit", 8))  # what Pillow needs is counted before
        if apart:
            stack.enter_context(mock.patch("avarc_cli.train.shared._machine", collectives.rank))
        before = kilobytes()
        held = TrainingImages(images, MEMORY_SIDE, Augment(mode="none"), seed=0)
        assert held.pixels.memory is not None
        held.pixels.memory.sum(dtype=np.int64)  # as an epoch does, reads them all
        collectives.from_all(None)
        after = kilobytes()
        rows = collectives.from_all({name: (after[name] - before[name]) / 1024 for name in after})
        collectives.from_all(None)
        if collectives.rank() == 0:
            print(f"pixels: {held.pixels.memory.nbytes / 2**20:.0f} MiB")
            for rank, row in enumerate(rows):
                print(f"process {rank}: mapped {row['Rss']:.0f} MiB, its share {row['Pss']:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    memory(asked.apart) if asked.what == "memory" else speed(as_json=asked.json)


if __name__ == "__main__":
    main()
