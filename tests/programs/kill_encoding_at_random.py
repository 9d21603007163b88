"""Kill an encoding run 50 times at a random moment; each run continues what the one before left.

Usage: kill_encoding_at_random FOLDER, which ends with an AssertionError where a byte of the cache differs.
"""

from __future__ import annotations

import os
import random
import sys
import time
from functools import partial
from pathlib import Path

import torch
from killing import in_child, killed_after, seconds, signal_at
from stub_tokenizer import StubTokenizer, make_images

from avarc_cli.data import ImageSet, Preprocess
from avarc_cli.tokens import encode

KILLS, MAX_RUNS = 50, 500


def run(images: ImageSet, out: Path) -> None:
    slow = StubTokenizer(lambda: time.sleep(0.002))
    encode(images, slow, Preprocess("none", 8), out, samples=2, chunk_size=2)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # what was written survives a kill; only a power cut could lose it
    images, out = make_images(folder / "images", 40), folder / "t.h5"
    run(images, folder / "complete.h5")
    complete = (folder / "complete.h5").read_bytes()
    times = []
    for _ in range(5):
        times.append(seconds(lambda: in_child(lambda: run(images, out))))
        out.unlink()
    duration, moment, kills = min(times), random.Random(0), 0
    for number in range(MAX_RUNS):
        kills += killed_after(moment.uniform(0, duration), signal_at(number), partial(run, images, out))
        if out.exists():
            assert out.read_bytes() == complete, number
            out.unlink()
        if kills == KILLS:
            break
    assert kills == KILLS, f"only {kills} runs were killed before they ended"
    run(images, out)
    assert out.read_bytes() == complete
    assert sorted(path.name for path in folder.iterdir()) == ["complete.h5", "images", "t.h5"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
