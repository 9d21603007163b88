"""Encoding by workers in other processes, one of which is killed."""

from __future__ import annotations

import importlib.util

import pytest
from programs import run

from avarc_cli.data import Preprocess
from avarc_cli.tokens import encode

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs avarc[ray]")


@pytest.mark.parametrize("workers", ["devices", pytest.param("ray", marks=[needs_ray, pytest.mark.slow])])
def test_a_killed_worker_changes_nothing_and_one_that_fails_is_reported(images, stub_tokenizer, tmp_path, workers):
    images.paths[3].write_bytes(b"unreadable")
    options = {"samples": 2, "latents": True, "chunk_size": 2}
    encode(images, stub_tokenizer(), Preprocess("none", 8), tmp_path / "local.h5", **options)
    done = run("encode_elsewhere", tmp_path, workers)
    assert done.returncode == 0, done.stderr
    assert workers == "ray" or done.stderr == ""
    assert (tmp_path / "elsewhere.h5").read_bytes() == (tmp_path / "local.h5").read_bytes()
