"""Work that is continued deletes what killed processes left half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from avarc_cli.results.folder import RunFolder
from avarc_cli.train.loop import Recipe, train

SUFFIXES = (".0123abcd.tmp", ".ffffffff.tmp")


def leave(*paths: Path) -> None:
    """Half-written versions of these files."""
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        for suffix in SUFFIXES:
            path.with_name(path.name + suffix).write_bytes(b"half")


def test_a_run_folder(tmp_path):
    leave(tmp_path / "run.json")  # before there is a run.json
    folder, asked = RunFolder(tmp_path), {"plan": "exhaustive"}
    assert folder.open(asked, images=2, group=1) == []
    leave(*(tmp_path / name for name in ("metrics.json", "seconds.part", "json/1.json", "likelihood/1.npz")))
    leave(tmp_path / "tokens.h5")  # which another process may be writing
    folder.open(asked, images=2, group=1)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["run.json", *sorted(f"tokens.h5{suffix}" for suffix in SUFFIXES)]


def test_a_finished_run(tmp_path):
    folder, asked = RunFolder(tmp_path), {"plan": "exhaustive"}
    folder.open(asked, images=0, group=1)
    folder.append([], seconds=1.0)
    folder.finish({})
    folder.append([], seconds=1.0)  # as a kill leaves it before the last step of `finish`
    folder.journal.unlink()
    leave(tmp_path / "metrics.json")
    assert folder.open(asked, images=0, group=1) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "predictions.jsonl", "run.json"]


def test_a_training_checkpoint(tmp_path):
    checkpoint = tmp_path / "a.ckpt"
    leave(checkpoint)

    def run(steps: int) -> None:
        model = nn.Linear(2, 1)
        recipe = Recipe(steps=2, batch_size=1, lr=0.1, save_every=1)

        def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            if step == steps:
                raise KeyboardInterrupt
            return model(torch.ones(1, 2)).sum() ** 2, {}

        train(model, loss_of_step, recipe, checkpoint, lambda step, shown: None, subject="x")

    with pytest.raises(Exception, match="interrupted"):
        run(1)
    first = checkpoint.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    leave(checkpoint)
    run(2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    assert checkpoint.read_bytes() != first
