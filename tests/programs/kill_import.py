"""Kill an import of tokens, and then an export, at every step; a rerun must finish it.

Usage: kill_import FOLDER, which ends with an AssertionError where a byte differs, or a file is left.
Every run is a fork, so that torch is imported once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from interchange_files import write
from killing import DieAt, in_child, signal_at
from stub_tokenizer import StubTokenizer

from avarc_cli.errors import UsageError
from avarc_cli.tokens.interchange.exporting import FOLDERS, export_codes
from avarc_cli.tokens.interchange.importing import import_codes

IMAGES = 5
KINDS = ("llamagen", "jsonl")


def die(step: int, work: Callable[[], object]) -> None:
    DieAt(step).watch_files()
    work()


def kill_at_every_step(work: Callable[[], object], check: Callable[[object], None]) -> None:
    """Kill it at each step in turn, at some a second time, and let a third run finish."""
    step = 0
    while code := in_child(partial(die, step, work)):
        assert code == -signal_at(step), (step, code)
        if step % 4 == 0:
            in_child(partial(die, step // 2, work))
        work()
        check(step)
        step += 1
    assert step > 5, f"only {step} steps were seen"
    check("not killed")


def kill_an_import(folder: Path, source: Path) -> None:
    def run(out: Path) -> None:
        import_codes(source, StubTokenizer(), out, chunk_size=2)

    run(folder / "complete.h5")
    complete, out = (folder / "complete.h5").read_bytes(), folder / "t.h5"

    def check(moment: object) -> None:
        assert out.read_bytes() == complete, (source, moment)
        left = sorted(path.name for path in folder.iterdir())
        assert left == sorted(["complete.h5", "t.h5", source.parent.name]), (source, moment, left)
        out.unlink()

    kill_at_every_step(partial(run, out), check)


def kill_an_export(folder: Path, kind: str) -> None:
    cache = folder / "complete.h5"
    out = folder / "out" if kind in FOLDERS else folder / f"out.{kind}"

    def content() -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.relative_to(folder).parts[0].startswith("out")
        }

    def run() -> None:
        with suppress(UsageError):  # a folder that exists is complete
            export_codes(cache, out, kind, overwrite=kind not in FOLDERS)

    run()
    complete = content()

    def check(moment: object) -> None:
        assert content() == complete, (kind, moment)
        for name in complete:
            (folder / name).unlink()
        for path in sorted(folder.rglob("out*/*"), reverse=True):
            path.rmdir()
        if out.is_dir():
            out.rmdir()

    check("before")
    kill_at_every_step(run, check)


def main(folder: Path) -> None:
    os.fsync = lambda fd: None  # what was written survives a kill; only a power cut could lose it
    tokens = np.random.default_rng(0).integers(0, StubTokenizer.vocab_size, (IMAGES, 1, 5))
    for kind in KINDS:
        (folder / kind).mkdir()
        source = write(kind, folder / kind / "source", tokens, np.arange(IMAGES))
        kill_an_import(folder / kind, source)
        kill_an_export(folder / kind, kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
