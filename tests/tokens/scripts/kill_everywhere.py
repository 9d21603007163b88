"""kill -9 or SIGTERM at every step of an encoding run: a rerun gives the same bytes. Also with shards and workers.

Usage: kill_everywhere.py FOLDER

This process imports torch once and forks a child for every point of death.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import DieAt, in_child, signal_at
from stub_tokenizer import StubTokenizer, make_images

from avarc_cli.data import Preprocess
from avarc_cli.errors import AvarcError
from avarc_cli.tokens import EncodeResult, Shard, encode

torch.set_num_threads(1)
os.fsync = lambda fd: None  # what was written survives a kill; only a power cut could lose it

FOLDER = Path(sys.argv[1])
OUT = FOLDER / "t.h5"
CHUNKS = FOLDER / "t.h5.parts"
IMAGES = make_images(FOLDER / "images", 5)
IMAGES.paths[3].write_bytes(b"unreadable")


def run(on_encode: Callable[[], object] = lambda: None, out: Path = OUT, **options: Any) -> EncodeResult:
    tokenizer = StubTokenizer(on_encode)
    return encode(IMAGES, tokenizer, Preprocess("none", 8), out, samples=2, chunk_size=2, **options)


def run_and_die(step: int, **options: Any) -> None:
    killer = DieAt(step)
    killer.watch_files()
    run(killer, **options)


def check(moment: object) -> None:
    """OUT is complete, and nothing is left beside it."""
    assert OUT.read_bytes() == COMPLETE, moment
    left = sorted(path.name for path in FOLDER.iterdir() if path.name not in {"images", "complete.h5"})
    assert left == ["t.h5"], (moment, left)


def undivided() -> None:
    step = 0
    while True:
        code = in_child(partial(run_and_die, step))
        if code == 0:
            break
        assert code == -signal_at(step), (step, code)
        if step % 4 == 0:  # killed again, somewhere else, before it may finish
            in_child(partial(run_and_die, step // 2))
        result = run()
        assert result.images == 4 and len(result.unreadable) == 1, (step, result)
        check(step)
        OUT.unlink()
        step += 1
    assert step > 30, f"only {step} steps were seen"
    check("not killed")
    OUT.unlink()


def shards() -> None:
    """One shard of two, before and after the other one, which leaves a partial cache."""
    for first in (2, 1):
        step = 0
        while True:
            if first == 2:
                run(shard=Shard(1, 2))
            code = in_child(partial(run_and_die, step, shard=Shard(first, 2)))
            assert code in {0, -signal_at(step)}, (first, step, code)
            results = [run(shard=Shard(2, 2)), run(shard=Shard(1, 2))]
            assert results[-1].complete, (first, step)
            check((first, step))
            OUT.unlink()
            if code == 0:
                break
            step += 4
        assert step > 20, f"only {step} steps were seen"


def workers() -> None:
    """Workers outlive their parent for a while: they hold no lock that blocks the next run."""
    killer = DieAt(2)
    assert in_child(lambda: run(killer, workers=2)) == -killer.signal
    assert CHUNKS.is_dir()
    assert run(workers=2).encoded < 5
    check("workers")
    OUT.unlink()


def full_disk() -> None:
    def run_with_limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        with pytest.raises(AvarcError, match="cannot write") as error:
            run()
        assert "finished chunks are kept" in error.value.fix

    for size, chunks in ((300, 0), (750, 0), (3000, 3)):  # not even the request; no chunk; chunks, but not the cache
        assert in_child(partial(run_with_limit, size)) == 0
        assert len(list(CHUNKS.glob("*.npz"))) == chunks, size
    assert run().encoded == 0
    check("full disk")


run(out=FOLDER / "complete.h5")
COMPLETE = (FOLDER / "complete.h5").read_bytes()
undivided()
shards()
workers()
full_disk()
