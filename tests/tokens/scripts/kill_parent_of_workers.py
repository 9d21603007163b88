"""Processes that decode images end when their parent is killed while they wait to hand over a batch.

Usage: kill_parent_of_workers.py FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from killing import in_child
from stub_tokenizer import StubTokenizer, make_images
from torch import Tensor

from avarc_cli.data import ImageSet, Preprocess
from avarc_cli.tokens import encode

torch.set_num_threads(1)

FOLDER = Path(sys.argv[1])
PIDS = FOLDER / "pids"
PIDS.mkdir()
IMAGES = make_images(FOLDER / "images", 200)
load = ImageSet.load


def load_and_note(self: ImageSet, *args: Any) -> Any:
    (PIDS / str(os.getpid())).touch()
    return load(self, *args)


setattr(ImageSet, "load", load_and_note)  # noqa: B010  # mypy refuses the assignment


class Large(StubTokenizer):
    """Its batches are more than a pipe holds, so that workers wait to hand them over."""

    image_size = 64

    def encode(self, images: Tensor) -> NoReturn:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


pixels = Preprocess("fit", 64)
code = in_child(lambda: encode(IMAGES, Large(), pixels, FOLDER / "t.h5", batch_size=8, workers=2))
assert code == -signal.SIGKILL, code
workers = [int(path.name) for path in PIDS.iterdir()]
assert len(workers) == 2, workers
while any(map(alive, workers)):  # the test that runs this has a time limit
    time.sleep(0.05)
