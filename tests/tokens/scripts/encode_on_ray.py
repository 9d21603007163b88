"""Encoding on a local Ray of two workers, one of which is killed.

Usage: encode_on_ray.py FOLDER    (with images in FOLDER/images, the fourth of which is unreadable)
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from stub_tokenizer import StubTokenizer
from torch import Tensor

from avarc_cli.data import Preprocess, open_images
from avarc_cli.errors import AvarcError
from avarc_cli.tokens import encode

torch.set_num_threads(1)

FOLDER = Path(sys.argv[1])
IMAGES = open_images([FOLDER / "images"])
PRE = Preprocess("none", 8)
OPTIONS: dict[str, Any] = {"samples": 2, "latents": True, "chunk_size": 2, "engine": "ray"}


class Mortal(StubTokenizer):
    """The first worker that encodes dies on the spot."""

    def encode(self, images: Tensor) -> Tensor:
        try:
            os.mkdir(FOLDER / "killed")
        except FileExistsError:
            return super().encode(images)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class Broken(StubTokenizer):
    def encode(self, images: Tensor) -> Tensor:
        raise MemoryError


ray.init(num_cpus=2, configure_logging=False, log_to_driver=False, include_dashboard=False)
seen = []
done = encode(IMAGES, Mortal(), PRE, FOLDER / "ray.h5", progress=lambda *at: seen.append(at), **OPTIONS)
assert done.images == 10 and len(done.unreadable) == 1, done
assert (FOLDER / "killed").is_dir()
assert seen[-1] == (11, 11), seen
with pytest.raises(AvarcError, match="not enough memory"):
    encode(IMAGES, Broken(), PRE, FOLDER / "broken.h5", **OPTIONS)
