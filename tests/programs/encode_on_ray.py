"""Encode FOLDER/images to FOLDER/ray.h5 on a local Ray of two workers, the first of which to encode is killed.

Usage: encode_on_ray FOLDER, with 11 images of which one is unreadable.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import ray
import torch
from stub_tokenizer import StubTokenizer
from torch import Tensor

from avarc_cli.data import Preprocess, open_images
from avarc_cli.errors import AvarcError
from avarc_cli.progress import Progress, no_progress
from avarc_cli.tokens import EncodeResult, encode
from avarc_cli.work.workers import Workers


class Mortal(StubTokenizer):
    """Kills the first worker that encodes."""

    def __init__(self, killed: Path) -> None:
        """killed: a folder that is made when it happens."""
        super().__init__()
        self.killed = killed

    def encode(self, images: Tensor) -> Tensor:
        try:
            self.killed.mkdir()
        except FileExistsError:
            return super().encode(images)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it was killed")


class Broken(StubTokenizer):
    def encode(self, images: Tensor) -> NoReturn:
        raise MemoryError


def run(folder: Path, tokenizer: StubTokenizer, out: str, progress: Progress = no_progress) -> EncodeResult:
    return encode(
        open_images([folder / "images"]),
        tokenizer,
        Preprocess("none", 8),
        folder / out,
        samples=2,
        latents=True,
        chunk_size=2,
        on=Workers("ray"),
        progress=progress,
    )


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ray.init(num_cpus=2, configure_logging=False, log_to_driver=False, include_dashboard=False)
    seen: list[tuple[int, int | None]] = []
    killed = folder / "killed"
    done = run(folder, Mortal(killed), "ray.h5", lambda done, total=None, note="": seen.append((done, total)))
    assert killed.is_dir()
    assert done.images == 10 and len(done.unreadable) == 1, done
    assert seen[-1] == (11, 11), seen
    with pytest.raises(AvarcError, match="not enough memory"):
        run(folder, Broken(), "broken.h5")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
