"""What `--checkpoint-activations` saves: the peak memory of a training with and without it, and what it costs in time.

usage: python tests/benchmarks/training_memory.py [--depth 8] [--width 512] [--batch 32] [--steps 3] [--json]

Every row is a process of its own that trains a VAR on random images; the peak is the largest resident set that the
operating system counted for it. The first row has a batch of one image: the memory that does not depend on the batch.
Results: docs/training-speed.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from figure_tables import Cell, Table, show
from memory import peak_of

AVARC = [sys.executable, "-m", "avarc_cli", "--quiet", "train"]


def prepare(folder: Path) -> Path:
    """Write some images, and a tokenizer that was trained for one step; the path of it."""
    for number in range(64):
        path = folder / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    tokenizer = folder / "tokenizer.safetensors"
    shape = "--image-size 16 --patch-nums 1,2,3,4,6,8 --width 32 --multipliers 1,2 --blocks 1 --augment none"
    _peak(["tokenizer", str(folder / "images"), *shape.split(), "--steps", "1", "--out", str(tokenizer)])
    return tokenizer


def _peak(command: list[str]) -> tuple[int, float]:
    """Bytes and seconds of a command, which must not fail."""
    code, peak, seconds = peak_of([*AVARC, *command])
    if code != 0:
        raise SystemExit(code)
    return peak, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = prepare(folder)
        shape = ["--depth", str(arguments.depth), "--width", str(arguments.width), "--steps", str(arguments.steps)]
        command = ["var", str(folder / "images"), "--tokenizer", str(tokenizer), "--augment", "none", *shape]
        checkpoint, rows = "--checkpoint-activations", list[list[Cell]]()
        for options, batch in (([], 1), ([], arguments.batch), ([checkpoint], arguments.batch)):
            out = str(folder / f"{len(rows)}.safetensors")
            peak, seconds = _peak([*command, *options, "--batch-size", str(batch), "--out", out])
            name = ", ".join([f"batch of {batch}", *(f"`{option}`" for option in options)])
            rows.append([name, peak / 2**20, seconds])
    columns = [("", ""), ("peak of the process, MiB", ",.0f"), ("seconds", ".0f")]
    show(Table(columns, rows), as_json=arguments.json)


if __name__ == "__main__":
    main()
