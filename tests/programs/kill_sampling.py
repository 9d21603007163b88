"""Kill the drawing of a folder of pictures at its steps with files, finish it, and compare it with an undisturbed one.

Usage: kill_sampling FOLDER, which ends with an AssertionError where a byte differs. Every third process is ended by
SIGTERM, the others by SIGKILL; each second folder is killed twice.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import torch
from killing import DieAt, in_child, signal_at

from avarc_cli.loaded import LoadedModel
from avarc_cli.loading import load_model
from avarc_cli.sample_many import sample_many
from avarc_cli.work.shards import UNDIVIDED, Shard


def draw(model: LoadedModel, out: Path, shard: Shard = UNDIVIDED) -> None:
    sample_many(model, ["3", "8"], out, 2, batch_size=3, shard=shard)


def draw_and_die(model: LoadedModel, out: Path, shard: Shard, step: int) -> None:
    DieAt(step).watch_files()
    draw(model, out, shard)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_at_steps(model: LoadedModel, folder: Path, shard: Shard, every: int) -> int:
    """Returns: steps of the last folder, which was not killed."""
    step, code = 0, -1
    while code:
        inside = folder / f"{shard.of}-{step}"
        inside.mkdir()
        out = inside / "out"
        if shard.of > 1:
            draw(model, out, Shard(1, 2))
        code = in_child(partial(draw_and_die, model, out, shard, step))
        assert code in {0, -signal_at(step)}, (step, code)
        assert code == 0 or not (out / "samples.json").exists() or len(contents(out)) >= 5, step
        if step % 2:
            in_child(partial(draw_and_die, model, out, shard, step // 2))
        draw(model, out, shard)
        assert contents(out) == contents(folder / "undisturbed"), step
        assert [path.name for path in inside.iterdir()] == ["out"], step
        step += every
    return step


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # what was written survives a kill; only a power cut could lose it
    model = load_model("digits")
    draw(model, folder / "undisturbed")
    assert len(contents(folder / "undisturbed")) == 5
    steps = kill_at_steps(model, folder, UNDIVIDED, 4), kill_at_steps(model, folder, Shard(2, 2), 6)
    assert min(steps) > 30, f"only {steps} steps were seen"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
