from __future__ import annotations

import importlib.util

import pytest
from programs import run

from avarc_cli.data import Preprocess
from avarc_cli.tokens import encode


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs avarc[ray]")
@pytest.mark.slow
def test_on_ray_a_killed_worker_changes_nothing(images, stub_tokenizer, tmp_path):
    images.paths[3].write_bytes(b"unreadable")
    options = {"samples": 2, "latents": True, "chunk_size": 2}
    encode(images, stub_tokenizer(), Preprocess("none", 8), tmp_path / "local.h5", **options)
    done = run("encode_on_ray", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ray.h5").read_bytes() == (tmp_path / "local.h5").read_bytes()
