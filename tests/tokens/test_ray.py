"""Encoding on a local Ray of two workers, one of which is killed. Ray starts once, in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from avarc_cli.data import Preprocess
from avarc_cli.tokens import encode

SCRIPT = """
import os, runpy, signal, sys, time
from pathlib import Path

import ray
import torch
from avarc_cli.data import Preprocess, open_images
from avarc_cli.errors import AvarcError
from avarc_cli.tokens import encode

torch.set_num_threads(1)
stub, folder = runpy.run_path(sys.argv[1]), Path(sys.argv[2])
images = open_images([folder / "images"])
PRE = Preprocess("none", 8)


class Mortal(stub["StubTokenizer"]):
    \"\"\"The first worker that comes to encode dies on the spot.\"\"\"

    def encode(self, batch):
        try:
            os.mkdir(folder / "killed")
        except FileExistsError:
            return super().encode(batch)
        os.kill(os.getpid(), signal.SIGKILL)


class Broken(stub["StubTokenizer"]):
    def encode(self, batch):
        raise MemoryError


ray.init(num_cpus=2, configure_logging=False, log_to_driver=False, include_dashboard=False)
seen = []
options = {"samples": 2, "latents": True, "unit": 2, "engine": "ray"}
done = encode(images, Mortal(), PRE, folder / "ray.h5", progress=lambda *at: seen.append(at), **options)
assert done.images == 10 and len(done.unreadable) == 1, done
assert (folder / "killed").is_dir()
assert seen[-1] == (11, 11), seen
try:
    encode(images, Broken(), PRE, folder / "broken.h5", **options)
except AvarcError as error:
    assert "not enough memory" in error.what, error
else:
    raise AssertionError("nothing was raised")
print("done")
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs avarc[ray]")
@pytest.mark.slow
def test_on_ray_a_killed_worker_changes_nothing(images, stub_tokenizer, tmp_path):
    images.paths[3].write_bytes(b"unreadable")
    conftest = Path(__file__).with_name("conftest.py")
    encode(images, stub_tokenizer(), Preprocess("none", 8), tmp_path / "local.h5", samples=2, latents=True, unit=2)
    command = [sys.executable, "-c", SCRIPT, str(conftest), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "ray.h5").read_bytes() == (tmp_path / "local.h5").read_bytes()
