"""Kill runs at random moments, finish each, and compare its files with those of an undisturbed run.

Usage: kill_runs FOLDER, which ends with an AssertionError where a byte differs. Every run is begun five times with a
slow model and killed at a random moment (SIGKILL, or SIGTERM every third time), then finished; at least 50 processes
die in this way. Runs, shards and runs with changed images are also killed at chosen steps with files, those at the end
among them. Forking keeps that fast: the children need not import torch.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from killing import DieAt, in_child, killed_after, killed_at_call, seconds, signal_at
from small_run import SmallModel, make_run
from torch import Tensor

from avarc_cli.results.folder import RunFolder
from avarc_cli.results.run import classify
from avarc_cli.work.shards import UNDIVIDED, Shard

FILES = ["run.json", "predictions.jsonl", "predictions.csv", *(f"likelihood/{i}.npz" for i in range(10))]
ATTEMPTS, KILLS = 5, 50


class SlowModel(SmallModel):
    def extend(self, state: Any, stop: int, **options: Any) -> Tensor:
        time.sleep(0.002)
        return super().extend(state, stop, **options)


def run(folder: Path, model: type[SmallModel] = SmallModel, shard: Shard = UNDIVIDED) -> None:
    classify(make_run(model(10**6), 64, save_json=True, save_likelihood=True), RunFolder(folder), shard=shard)


def finish_changed(folder: Path, changed: Path) -> None:
    """Kill a run that finds predictions of other tokens, in two groups, and finish it."""
    ended: bool | None = False
    for number in range(100):
        if ended is not False:
            return
        killed = folder / f"changed-{number}"
        shutil.copytree(changed, killed)
        ended = killed_at_call(41 * number, partial(run, killed))
        check_csv(killed)
        run(killed)
        check(killed, folder / "undisturbed", number)
    raise AssertionError("the run has more system calls than expected")


def run_and_die(folder: Path, step: int, shard: Shard) -> None:
    DieAt(step).watch_files()
    run(folder, shard=shard)


def kill_at_every_step(folder: Path, shard: Shard) -> None:
    """Kill a run, or the second of two shards, at its steps with files; kill it once more, and finish it."""
    step, code = 0, -1
    while code:
        killed = folder / f"shard-{shard.of}-step-{step}"
        if shard.of > 1:
            run(killed, shard=Shard(1, 2))
        code = in_child(partial(run_and_die, killed, step, shard))
        assert code in {0, -signal_at(step)}, (step, code)
        if step % 2:
            in_child(partial(run_and_die, killed, step // 2, shard))
        run(killed, shard=shard)
        check(killed, folder / "undisturbed", step)
        shutil.rmtree(killed)
        step += 7
    assert step > 100, f"only {step} steps were seen"


def check(killed: Path, undisturbed: Path, moment: object) -> None:
    """The run is finished, and nothing is left beside it."""
    for file in FILES:
        assert (killed / file).read_bytes() == (undisturbed / file).read_bytes(), (moment, file)
    assert names(killed) == names(undisturbed), moment


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
    kill_at_every_step(folder, UNDIVIDED)
    kill_at_every_step(folder, Shard(2, 2))
    duration = min(seconds(partial(run, folder / f"timed-{i}", SlowModel)) for i in range(5))
    moment = random.Random(0)
    kills = 0
    for number in range(100):
        killed = folder / f"killed-{number}"
        for attempt in range(ATTEMPTS):
            with_signal = signal_at(number * ATTEMPTS + attempt)
            kills += killed_after(moment.uniform(0, duration), with_signal, partial(run, killed, SlowModel))
            check_csv(killed)
        run(killed)
        check(killed, undisturbed, number)
        if kills >= KILLS:
            return
    raise AssertionError(f"only {kills} runs were killed before they ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
