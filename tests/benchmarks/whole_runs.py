"""Images a second of whole commands: encode, classify by the paper's plan, sample. Random weights and images.

Each command runs for a few images and for many; the difference of the times, divided by that of the images, leaves out
the start. Beside it is what the command took for the few, most of which is its start. docs/gpu.md says when to run it.

usage: python tests/benchmarks/whole_runs.py [SHAPE] [IMAGES] [CLASSES] [--json]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from figure_tables import Cell, Table, say, show, wants_json
from memory_plain import write_models
from PIL import Image

FEW = 4
PRECISIONS = ("fp32", "bf16", "cascade")


def write_images(folder: Path, images: int) -> None:
    folder.mkdir()
    for i in range(images):
        pixels = np.random.default_rng(i).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05}.png", compress_level=1)


def seconds(command: str, *words: str | Path) -> float:
    began = time.monotonic()
    called = [sys.executable, "-m", "avarc_cli", "-q", command, *map(str, words)]
    subprocess.run(called, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def main(shape: str, images: int, classes: int, *, as_json: bool) -> None:
    rows: list[list[Cell]] = []

    def measure(name: str, few: float, many: float) -> None:
        rows.append([name, (images - FEW) / (many - few), few])
        say(f"{name}: {rows[-1][1]:.1f} images/s")

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder, shape)
        write_images(folder / "photos", images)
        tokenizer: list[str | Path] = ["--tokenizer", folder / "tokenizer.safetensors"]
        models: list[str | Path] = ["--model", folder / "model.safetensors", *tokenizer]
        candidates = ",".join(map(str, range(classes)))
        for precision in ("fp32", "bf16") if torch.cuda.is_available() else ("fp32",):
            options = ["--samples", "3", "--precision", precision]
            caches = {count: folder / f"{precision}-{count}.h5" for count in (FEW, images)}
            spent = [
                seconds("encode", folder / "photos", *tokenizer, *options, "--limit", str(count), "--out", cache)
                for count, cache in caches.items()
            ]
            measure(f"encode, 3 samples, {precision}", *spent)
        for precision in PRECISIONS:
            options = ["--plan", "paper", "--classes", candidates, "--precision", precision]
            few, many = (folder / f"fp32-{count}.h5" for count in (FEW, images))
            if precision != "fp32":
                seconds("classify", few, *models, *options)  # compiles, and measures what is kept for later runs
            spent = [seconds("classify", cache, *models, *options) for cache in (few, many)]
            measure(f"classify, {classes} classes, {precision}", *spent)
        spent = [
            seconds("sample", "0", *models, "--count", str(count), "--out", folder / f"{count}.npz")
            for count in (FEW, images)
        ]
        measure("sample", *spent)
    show(Table([("", ""), ("images/s", ".3g"), (f"seconds of {FEW} images", ".1f")], rows), as_json=as_json)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    given = [*sys.argv[1:], *("d16", "256", "100")[len(sys.argv) - 1 :]]
    main(given[0], int(given[1]), int(given[2]), as_json=as_json)
