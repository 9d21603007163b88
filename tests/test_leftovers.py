"""Work that is continued deletes what killed processes left half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_run import SmallModel, make_run
from torch import nn

from avarc_cli.errors import AvarcError
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.run import classify
from avarc_cli.train.loop import Recipe, train

SUFFIXES = (".0123abcd.tmp", ".ffffffff.tmp")
RUN = ["metrics.json", "predictions.csv", "predictions.jsonl", "run.json"]


def leave(*paths: Path) -> None:
    """Half-written versions of these files."""
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        for suffix in SUFFIXES:
            path.with_name(path.name + suffix).write_bytes(b"half")


def test_a_run_folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    leave(run / "run.json")  # before there is a run.json
    with pytest.raises(AvarcError, match="not enough memory"):
        classify(make_run(SmallModel(0)), RunFolder(run))
    leave(
        *(
            run / name
            for name in (
                "metrics.json",
                "predictions.csv",
                "parts",
                "parts/000003.npz",
                "json/1.json",
                "likelihood/1.npz",
            )
        )
    )
    leave(run / "tokens.h5")  # which another process may be writing
    classify(make_run(SmallModel(10**6)), RunFolder(run))
    left = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    assert left == [*RUN, *sorted(f"tokens.h5{suffix}" for suffix in SUFFIXES)]


def test_a_finished_run(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(AvarcError, match="not enough memory"):
        classify(make_run(SmallModel(0)), RunFolder(run))
    parts = shutil.copytree(run / "parts", tmp_path / "parts")
    first = classify(make_run(SmallModel(10**6)), RunFolder(run))
    shutil.copytree(parts, run / "parts")  # as a kill leaves it before the last step
    leave(run / "metrics.json")
    assert classify(make_run(SmallModel(0)), RunFolder(run)).metrics == first.metrics
    assert sorted(path.name for path in run.iterdir()) == RUN


def test_a_training_checkpoint(tmp_path):
    checkpoint = tmp_path / "a.ckpt"
    leave(checkpoint)

    def run(steps: int) -> None:
        model = nn.Linear(2, 1)
        recipe = Recipe(steps=2, batch_size=1, lr=0.1, save_every=1)

        def loss_of_rows(step, rows):
            if step == steps:
                raise KeyboardInterrupt
            return model(torch.ones(1, 2)).sum() ** 2, {}

        train(model, loss_of_rows, recipe, checkpoint, lambda step, shown: None, subject={})

    with pytest.raises(Exception, match="interrupted"):
        run(1)
    first = checkpoint.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    leave(checkpoint)
    run(2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    assert checkpoint.read_bytes() != first
