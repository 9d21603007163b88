"""Kill an encoding run at every step, also of a shard and with workers, and fill its disk; a rerun must finish it.

Usage: kill_encoding FOLDER, which ends with an AssertionError where a byte of the cache differs, or a file is left.
Every run is a fork, so that torch is imported once.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from killing import DieAt, in_child, signal_at
from stub_tokenizer import StubTokenizer, make_images

from avarc_cli.data import Preprocess
from avarc_cli.errors import AvarcError
from avarc_cli.tokens import EncodeResult, Shard, encode
from avarc_cli.work.shards import UNDIVIDED


class Encoding:
    """Five images, one of them unreadable, and the cache that a run makes of them when it is not killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.chunks = folder, folder / "t.h5", folder / "t.h5.parts"
        self.images = make_images(folder / "images", 5)
        self.images.paths[3].write_bytes(b"unreadable")
        self.run(out=folder / "complete.h5")
        self.complete = (folder / "complete.h5").read_bytes()

    def run(
        self,
        on_encode: Callable[[], object] = lambda: None,
        *,
        out: Path | None = None,
        shard: Shard = UNDIVIDED,
        workers: int = 0,
    ) -> EncodeResult:
        return encode(
            self.images,
            StubTokenizer(on_encode),
            Preprocess("none", 8),
            out or self.out,
            samples=2,
            chunk_size=2,
            shard=shard,
            workers=workers,
        )

    def replace(self, paths: list[Path], contents: list[bytes]) -> None:
        """Write files, with a time that depends on their content only, so that caches have the same bytes."""
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
            os.utime(path, (len(content), sum(content)))

    def run_and_die(self, step: int, shard: Shard = UNDIVIDED) -> None:
        killer = DieAt(step)
        killer.watch_files()
        self.run(killer, shard=shard)

    def check(self, moment: object) -> None:
        """The cache is complete, and nothing is left beside it."""
        assert self.out.read_bytes() == self.complete, moment
        left = sorted(
            path.name for path in self.folder.iterdir() if path.name not in {"images", "complete.h5", "old.h5"}
        )
        assert left == ["t.h5"], (moment, left)
        self.out.unlink()


def kill_at_every_step(encoding: Encoding) -> None:
    step = 0
    while code := in_child(partial(encoding.run_and_die, step)):
        assert code == -signal_at(step), (step, code)
        if step % 4 == 0:  # killed again, somewhere else, before it may finish
            in_child(partial(encoding.run_and_die, step // 2))
        result = encoding.run()
        assert result.images == 4 and len(result.unreadable) == 1, (step, result)
        encoding.check(step)
        step += 1
    assert step > 30, f"only {step} steps were seen"
    encoding.check("not killed")


def kill_a_shard(encoding: Encoding, *, second: bool) -> None:
    """One shard of two, the first to run, or the second, which finds a partial cache."""
    step, code = 0, -1
    while code:
        if second:
            encoding.run(shard=Shard(1, 2))
        shard = Shard(2 if second else 1, 2)
        code = in_child(partial(encoding.run_and_die, step, shard))
        assert code in {0, -signal_at(step)}, (second, step, code)
        encoding.run(shard=Shard(2, 2))
        assert encoding.run(shard=Shard(1, 2)).complete, (second, step)
        encoding.check((second, step))
        step += 4
    assert step > 20, f"only {step} steps were seen"


def kill_an_update(encoding: Encoding) -> None:
    """A run that finds a complete cache of which one image changed, and one was repaired."""
    images = [encoding.images.paths[0], encoding.images.paths[3]]
    before = [path.read_bytes() for path in images]
    after = [encoding.images.paths[1].read_bytes(), encoding.images.paths[2].read_bytes()]
    encoding.replace(images, before)
    encoding.run(out=encoding.folder / "old.h5")
    step, code = 0, -1
    while code:
        encoding.replace(images, before)
        shutil.copy(encoding.folder / "old.h5", encoding.out)
        encoding.replace(images, after)
        if step == 0:
            (encoding.folder / "complete.h5").unlink()
            encoding.run(out=encoding.folder / "complete.h5")
            encoding.complete = (encoding.folder / "complete.h5").read_bytes()
        code = in_child(partial(encoding.run_and_die, step))
        assert code in {0, -signal_at(step)}, (step, code)
        assert encoding.run().images == 5, step
        encoding.check(("update", step))
        step += 3
    assert step > 30, f"only {step} steps were seen"


def kill_beside_workers(encoding: Encoding) -> None:
    """Workers outlive their parent for a while: they hold no lock that blocks the next run."""
    killer = DieAt(2)
    assert in_child(lambda: encoding.run(killer, workers=2)) == -killer.signal
    assert encoding.chunks.is_dir()
    assert encoding.run(workers=2).encoded < 5
    encoding.check("workers")


def fill_the_disk(encoding: Encoding) -> None:
    def run_with_limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        with pytest.raises(AvarcError, match="cannot write") as error:
            encoding.run()
        assert "finished chunks are kept" in error.value.fix

    for size, chunks in ((300, 0), (750, 0), (3000, 3)):  # not even the request; no chunk; chunks, but not the cache
        assert in_child(partial(run_with_limit, size)) == 0
        assert len(list(encoding.chunks.glob("*.npz"))) == chunks, size
    assert encoding.run().encoded == 0
    encoding.check("full disk")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # what was written survives a kill; only a power cut could lose it
    encoding = Encoding(folder)
    kill_at_every_step(encoding)
    kill_a_shard(encoding, second=True)
    kill_a_shard(encoding, second=False)
    kill_beside_workers(encoding)
    fill_the_disk(encoding)
    kill_an_update(encoding)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
