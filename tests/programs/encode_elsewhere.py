"""Encode FOLDER/images to FOLDER/elsewhere.h5 by two processes, the first of which to encode is killed.

Usage: encode_elsewhere FOLDER, with 11 images of which the fourth is unreadable.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import quick_processes
import torch
from stub_tokenizer import StubTokenizer
from torch import Tensor

from avarc_cli.data import Preprocess, open_images
from avarc_cli.errors import AvarcError
from avarc_cli.progress import Notify, Progress, no_message, no_progress
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


class Picky(StubTokenizer):
    """Fails on the batch that one image is in."""

    def __init__(self, mean: float) -> None:
        """mean: of the image's pixels."""
        super().__init__()
        self.mean = mean

    def encode(self, images: Tensor) -> Tensor:
        if any(abs(float(image.mean()) - self.mean) < 1e-6 for image in images):
            raise ZeroDivisionError("an image that it does not like")
        return super().encode(images)


class NotThere(StubTokenizer):
    """Cannot be loaded by another process."""

    def __reduce__(self) -> tuple[type[NoWeights], tuple[()]]:
        return NoWeights, ()


class NoWeights:
    def __init__(self) -> None:
        raise AvarcError("the weights are gone", "a test took them")


class Run:
    """Encodes the images."""

    def __init__(self, folder: Path, on: Workers) -> None:
        self.folder, self.on = folder, on

    def encode(
        self, tokenizer: StubTokenizer, out: str, progress: Progress = no_progress, say: Notify = no_message
    ) -> EncodeResult:
        return encode(
            open_images([self.folder / "images"]),
            tokenizer,
            Preprocess("none", 8),
            self.folder / out,
            samples=2,
            latents=True,
            chunk_size=2,
            on=self.on,
            progress=progress,
            say=say,
        )


def check_kill(run: Run) -> list[str]:
    """The first worker is killed. Returns: messages."""
    seen: list[tuple[int, int | None]] = []
    said: list[str] = []
    killed = run.folder / "killed"
    done = run.encode(
        Mortal(killed), "elsewhere.h5", lambda done, total=None, note="": seen.append((done, total)), said.append
    )
    assert killed.is_dir()
    assert done.images == 10 and len(done.unreadable) == 1, done
    assert seen[-1] == (11, 11), seen
    return said


def check_devices(folder: Path) -> None:
    run = Run(folder, Workers(devices=("cpu", "cpu")))
    (said,) = check_kill(run)
    assert "failed" not in said and "on cpu, process" in said and "SIGKILL; it is tried again" in said, said

    with quick_processes.instead_of_spawned():
        check_failures(run, folder)


def check_failures(run: Run, folder: Path) -> None:
    """A chunk that cannot be computed, and a tokenizer that cannot be loaded, are tried on both devices."""
    images = open_images([folder / "images"])
    disliked = torch.from_numpy(images.load_views(6, Preprocess("none", 8))).float().div(255).mul(2).sub(1)
    with pytest.raises(AvarcError) as caught:
        run.encode(Picky(float(disliked.mean())), "picky.h5")
    assert caught.value.what.startswith("chunk 3 could not be computed on cpu, process "), caught.value
    assert caught.value.what.count("process") == 2, caught.value
    assert "does not like; 1 of 6 chunks is missing, finished chunks are kept" in caught.value.why, caught.value
    assert sorted(path.name for path in folder.glob("picky.h5.parts/*.npz")) == [
        f"{number:06d}.npz" for number in (0, 1, 2, 4, 5)
    ]

    said_2: list[str] = []
    with pytest.raises(AvarcError, match="the weights are gone: a test took them; 6 of 6 chunks are missing"):
        run.encode(NotThere(), "gone.h5", say=said_2.append)
    assert len(said_2) == 2 and all(text.startswith("no chunk can be computed on cpu") for text in said_2), said_2


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_devices(Path(sys.argv[1]))
