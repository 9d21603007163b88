"""Kill an encoding process while the two workers that decode for it wait to hand over a batch; wait for their end.

Usage: kill_parent_of_workers FOLDER, which runs forever if a worker does not end.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from killing import in_child, until
from stub_tokenizer import StubTokenizer, make_images
from torch import Tensor

from avarc_cli.data import ImageSet, Preprocess
from avarc_cli.tokens import encode


class Large(StubTokenizer):
    """Its batches are more than a pipe holds, so that workers wait to hand them over."""

    image_size = 64

    def __init__(self, pids: Path) -> None:
        super().__init__()
        self.pids = pids

    def encode(self, images: Tensor) -> NoReturn:
        until(lambda: len(list(self.pids.iterdir())) == 2)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it was killed")


def noting_process(load: Callable[..., np.ndarray], pids: Path) -> Callable[..., np.ndarray]:
    """ImageSet.load_views, which also makes a file named after the process."""

    def load_and_note(*args: Any) -> np.ndarray:
        (pids / str(os.getpid())).touch()
        return load(*args)

    return load_and_note


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    pids = folder / "pids"
    pids.mkdir()
    images = make_images(folder / "images", 200)
    setattr(ImageSet, "load_views", noting_process(ImageSet.load_views, pids))  # noqa: B010  # mypy refuses the plain assignment
    pixels = Preprocess("fit", 64)
    code = in_child(lambda: encode(images, Large(pids), pixels, folder / "t.h5", batch_size=8, workers=2))
    assert code == -signal.SIGKILL, code
    workers = [int(path.name) for path in pids.iterdir()]
    assert len(workers) == 2, workers
    while any(map(is_alive, workers)):
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
