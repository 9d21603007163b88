"""Kill runs at random moments, finish each, and compare its files with those of an undisturbed run.

Usage: kill_runs FOLDER, which ends with an AssertionError where a byte differs. Every run is begun five times with a
slow model and killed at a random moment (SIGKILL, or SIGTERM every third time), then finished; at least 50 processes
die in this way. Forking keeps that fast: the children need not import torch.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from killing import killed_after, killed_at_call, signal_at
from small_run import SmallModel, make_run
from torch import Tensor

from avarc_cli.results.folder import RunFolder
from avarc_cli.results.run import classify

FILES = ["run.json", "predictions.jsonl", "predictions.csv", *(f"likelihood/{i}.npz" for i in range(10))]
ATTEMPTS, KILLS = 5, 50


class SlowModel(SmallModel):
    def extend(self, state: Any, stop: int, **options: Any) -> Tensor:
        time.sleep(0.002)
        return super().extend(state, stop, **options)


def run(folder: Path, model: type[SmallModel] = SmallModel) -> None:
    request = make_run(model(10**6), tokens_per_batch=64)
    request = replace(request, request=replace(request.request, keep_tokens=True), save_json=True, save_likelihood=True)
    classify(request, RunFolder(folder))


def finish_changed(folder: Path, changed: Path) -> None:
    """Kill a run that finds predictions of other tokens, in two groups, and finish it."""
    for number in range(16):
        killed = folder / f"changed-{number}"
        shutil.copytree(changed, killed)
        killed_at_call(30 * number, partial(run, killed))
        check_csv(killed)
        run(killed)
        for file in FILES:
            assert (killed / file).read_bytes() == (folder / "undisturbed" / file).read_bytes(), (number, file)
        assert names(killed) == names(folder / "undisturbed"), number


def make_changed(undisturbed: Path, changed: Path) -> None:
    """A finished run, some of whose images were others."""
    shutil.copytree(undisturbed, changed)
    lines = [json.loads(line) for line in (changed / "predictions.jsonl").read_text().splitlines()]
    for index in (1, 6):
        lines[index]["tokens_digest"] = "0" * 16
    (changed / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def check_csv(folder: Path) -> None:
    """A run that counts as finished has its CSV file."""
    assert (folder / "predictions.csv").exists() or not (folder / "predictions.jsonl").exists()


def names(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # what was written survives a kill; only a power cut could lose it
    undisturbed = folder / "undisturbed"
    run(undisturbed)
    make_changed(undisturbed, folder / "changed")
    finish_changed(folder, folder / "changed")
    began = time.monotonic()
    run(folder / "timed", SlowModel)
    duration, moment = time.monotonic() - began, random.Random(0)
    kills = 0
    for number in range(100):
        killed = folder / f"killed-{number}"
        for attempt in range(ATTEMPTS):
            with_signal = signal_at(number * ATTEMPTS + attempt)
            kills += killed_after(moment.uniform(0, duration), with_signal, partial(run, killed, SlowModel))
            check_csv(killed)
        run(killed)
        for file in FILES:
            assert (killed / file).read_bytes() == (undisturbed / file).read_bytes(), (number, file)
        assert names(killed) == names(undisturbed), number
        if kills >= KILLS:
            return
    raise AssertionError(f"only {kills} runs were killed before they ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
