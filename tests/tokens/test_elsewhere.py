"""Encoding by processes on devices, one of which is killed; tests/work/test_ray.py does it on Ray."""

from __future__ import annotations

from programs import run

from avarc_cli.data import Preprocess
from avarc_cli.tokens import encode


def test_a_killed_worker_changes_nothing_and_one_that_fails_is_reported(images, stub_tokenizer, tmp_path):
    images.paths[3].write_bytes(b"unreadable")
    options = {"samples": 2, "latents": True, "chunk_size": 2}
    encode(images, stub_tokenizer(), Preprocess("none", 8), tmp_path / "local.h5", **options)
    done = run("encode_elsewhere", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "elsewhere.h5").read_bytes() == (tmp_path / "local.h5").read_bytes()
