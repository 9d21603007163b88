"""Kill the drawing of pictures at its steps with files, finish it, and compare it with an undisturbed one.

Usage: kill_sampling FOLDER, which ends with an AssertionError where a byte differs. Every third process is ended by
SIGTERM, the others by SIGKILL; each second output is killed twice. Outputs are a folder of pictures and an array.
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
from avarc_cli.sampling.many import sample_many
from avarc_cli.work.shards import UNDIVIDED, Shard


def draw(model: LoadedModel, out: Path, shard: Shard = UNDIVIDED) -> None:
    sample_many(model, ["3", "8"], out, 2, batch_size=3, shard=shard)


def draw_and_die(model: LoadedModel, out: Path, shard: Shard, step: int) -> None:
    DieAt(step).watch_files()
    draw(model, out, shard)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_at_steps(model: LoadedModel, folder: Path, name: str, shard: Shard, every: int) -> int:
    """Kill the drawing of the output of this name. Returns: steps of the last one, which was not killed."""
    undisturbed = folder / "undisturbed" / name
    undisturbed.mkdir(parents=True, exist_ok=True)
    draw(model, undisturbed / name)
    whole = contents(undisturbed)
    assert len(whole) == (2 if name.endswith(".npz") else 5)
    step, code = 0, -1
    while code:
        inside = folder / f"{name}-{shard.of}-{step}"
        inside.mkdir()
        out = inside / name
        if shard.of > 1:
            draw(model, out, Shard(1, 2))
        code = in_child(partial(draw_and_die, model, out, shard, step))
        assert code in {0, -signal_at(step)}, (step, code)
        assert code == 0 or not (out / "samples.json").exists() or len(contents(out)) >= 5, step
        assert not out.is_file() or out.read_bytes() == whole[Path(name)], step
        if step % 2:
            in_child(partial(draw_and_die, model, out, shard, step // 2))
        draw(model, out, shard)
        assert contents(inside) == whole, step
        step += every
    return step


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # what was written survives a kill; only a power cut could lose it
    model = load_model("digits")
    whole, second = UNDIVIDED, Shard(2, 2)
    steps = kill_at_steps(model, folder, "out", whole, 4), kill_at_steps(model, folder, "out", second, 6)
    assert min(steps) > 30, f"only {steps} steps were seen"
    steps = kill_at_steps(model, folder, "x.npz", whole, 6), kill_at_steps(model, folder, "x.npz", second, 9)
    assert min(steps) > 20, f"only {steps} steps were seen"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
