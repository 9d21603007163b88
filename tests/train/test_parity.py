"""Training steps of the generators: their references' own, replayed, and that the replay notices what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import GOLDEN
from golden import fill
from train import parity, parity_generators

from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.train import schedules

FILES = sorted(path.name for path in GOLDEN.glob("train_step_*.npz") if "llamagen_vq" not in path.name)


@pytest.mark.parametrize("name", FILES)
def test_the_steps_of_training_are_the_references(name):
    comparisons = parity.replay_file(GOLDEN / name)
    assert comparisons and not [each for each in comparisons if each.exceeded]
    names = {each.name for each in comparisons}
    assert "schedules" in name or {"loss", "lr", "grad_norm", "digest", "groups"} <= names


def replayed(name):
    """The outputs that differ from the reference's."""
    return {each.name for each in parity.replay_file(GOLDEN / f"train_step_{name}_tiny.npz") if each.exceeded}


def test_a_wrong_group_is_noticed(monkeypatch):
    monkeypatch.setattr(VARLikelihood, "decays", lambda self, name, p: p.ndim >= 2 and "class_emb" not in name)
    assert {"groups", "digest"} <= replayed("var")


def test_a_schedule_that_is_one_step_early_is_noticed(monkeypatch):
    right = schedules.relative_rate
    monkeypatch.setattr(schedules, "relative_rate", lambda name, step, *a, **b: right(name, step + 1, *a, **b))
    assert {"lr", "digest"} <= replayed("var")


def test_a_missing_output_and_a_missing_clip_are_noticed(monkeypatch):
    recipe, run = parity_generators.Recipe, parity_generators._run
    monkeypatch.setattr(parity_generators, "Recipe", lambda **kw: recipe(**kw | {"clip": None}))
    monkeypatch.setattr(
        parity_generators, "_run", lambda *a: {k: v for k, v in run(*a).items() if k not in ("loss", "groups")}
    )
    assert replayed("llamagen_gpt") == {"loss", "digest", "grad_norm"}  # the loss is missing


@pytest.fixture
def changed(tmp_path):
    """The schedules' file with one array that is wrong by 1e-8."""
    meta, arrays = fill.load_golden(GOLDEN / "train_step_schedules_tiny.npz")
    arrays["var_wd"] = arrays["var_wd"] + 1e-8
    np.savez(tmp_path / "changed.npz", meta=np.array(json.dumps(meta)), **arrays)
    return tmp_path / "changed.npz"


def test_the_command_prints_every_array_and_fails_when_one_differs(changed):
    command = [sys.executable, parity.__file__, GOLDEN / "train_step_schedules_tiny.npz", changed]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == ""
    assert len(done.stdout.splitlines()) == 16
    assert [line.split()[0] for line in done.stdout.splitlines() if "EXCEEDED" in line] == ["var_wd"]


def test_the_command_refuses_files_of_another_kind(tmp_path, capsys):
    for file in map(str, (GOLDEN / "var_tiny.npz", tmp_path / "none.npz", __file__)):
        assert parity.main([file]) == 2
        assert file in capsys.readouterr().err
