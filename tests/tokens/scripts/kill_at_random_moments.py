"""50 times kill -9 or SIGTERM at a random moment of an encoding run; each run continues what the last one left.

Usage: kill_at_random_moments.py FOLDER
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import torch
from killing import in_child, killed_after, signal_at
from stub_tokenizer import StubTokenizer, make_images

from avarc_cli.data import Preprocess
from avarc_cli.tokens import encode

torch.set_num_threads(1)
os.fsync = lambda fd: None  # what was written survives a kill; only a power cut could lose it

FOLDER = Path(sys.argv[1])
OUT = FOLDER / "t.h5"
IMAGES = make_images(FOLDER / "images", 40)
KILLS = 50


def run(out: Path = OUT) -> None:
    slow = StubTokenizer(lambda: time.sleep(0.002))
    encode(IMAGES, slow, Preprocess("none", 8), out, samples=2, chunk_size=2)


run(FOLDER / "complete.h5")
complete = (FOLDER / "complete.h5").read_bytes()
began = time.monotonic()
in_child(run)
length = time.monotonic() - began
OUT.unlink()
moment = random.Random(0)
kills = 0
for number in range(10 * KILLS):
    kills += killed_after(moment.uniform(0, length), signal_at(number), run)
    if OUT.exists():
        assert OUT.read_bytes() == complete, number
        OUT.unlink()
    if kills == KILLS:
        break
run()
assert OUT.read_bytes() == complete
assert sorted(path.name for path in FOLDER.iterdir()) == ["complete.h5", "images", "t.h5"]
