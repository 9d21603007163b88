"""A run when the machine is too small, or the user impatient."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from avarc_cli.data.labels import LabelSpace
from avarc_cli.errors import AvarcError, Interrupted, UsageError
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.records import Naming
from avarc_cli.results.run import Run, classify
from avarc_cli.scoring.engine import Request
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.scores import score_function

NAMES = tuple("abcd")


class Small:
    """A likelihood model whose machine holds `room` tokens at once."""

    segment_ends = (4, 16)
    num_classes = 4
    unconditional = None
    flops_per_token = 1

    def __init__(self, room, error=None):
        self.room, self.error = room, error or torch.OutOfMemoryError("CUDA out of memory")

    def begin(self, tokens_BL, sequence_P, class_id_P):
        return {"tokens": tokens_BL[sequence_P], "class": class_id_P, "at": 0}

    def extend(self, state, stop, *, hold):
        start, end = (self.segment_ends[state["at"] - 1] if state["at"] else 0), self.segment_ends[stop - 1]
        if len(state["class"]) * (end - start) > self.room:
            raise self.error
        state["at"] = stop
        return -((state["tokens"][:, start:end] - state["class"][:, None]) ** 2).float()

    def select(self, state, keep_Q):
        return state | {"tokens": state["tokens"][keep_Q], "class": state["class"][keep_Q]}

    def bytes_per_token(self, *, kept):
        return 1


class Cache:
    """Images whose tokens all name the right class."""

    paths = tuple(f"{i}.png" for i in range(10))

    def __len__(self):
        return len(self.paths)

    def tokens(self, rows):
        return np.repeat(np.asarray(rows) % 4, 16).reshape(-1, 1, 16)


def make_run(model, tokens_per_batch=512, plan="exhaustive"):
    return Run(
        model=model,
        cache=Cache(),
        labels=np.arange(10) % 4,
        request=Request(
            candidates=np.arange(4),
            plan=parse_plan(plan, segments=2, candidates=4, samples=1),
            score=score_function("log-likelihood"),
            log_prior=np.zeros(4),
            tokens_per_batch=tokens_per_batch,
        ),
        naming=Naming(LabelSpace("letters", NAMES, NAMES), np.arange(4)),
        precision="fp32",
        protocol={"plan": plan},
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("plan", ["exhaustive", "1:2,2:1"])
def test_running_out_of_memory_halves_the_batch_says_so_and_finishes(tmp_path, error, plan):
    said = []
    result = classify(make_run(Small(100, error), plan=plan), RunFolder(tmp_path / "run"), say=said.append)
    assert result.metrics["accuracy"] == 1.0 and len(result.records) == 10
    assert said and all(message.startswith("out of memory: going on with") for message in said)
    assert len(said) <= 3, "the smaller batch is kept for the rest of the run"


def test_when_one_image_is_too_much_its_batch_is_halved():
    said = []
    assert classify(make_run(Small(40)), None, say=said.append).metrics["accuracy"] == 1.0
    assert "batches of 256 tokens instead of 512" in "".join(said)


def test_a_machine_without_room_for_one_pair_is_told_so(tmp_path):
    with pytest.raises(AvarcError, match="not enough memory to score one pair"):
        classify(make_run(Small(0)), RunFolder(tmp_path / "run"))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shape"):
        classify(make_run(Small(0, RuntimeError("shape mismatch"))), None)


def test_an_interrupted_run_says_what_is_kept_and_goes_on_from_there(tmp_path):
    class Impatient(Small):
        def extend(self, state, stop, *, hold):
            if int(state["tokens"][0, 0]) == 3:
                raise KeyboardInterrupt
            return super().extend(state, stop, hold=hold)

    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="3 of 10 images are kept"):
        classify(make_run(Impatient(10**6), tokens_per_batch=64), RunFolder(folder))
    seen = []
    result = classify(
        make_run(Small(10**6), tokens_per_batch=64), RunFolder(folder), progress=lambda n, _: seen.append(n)
    )
    assert seen[0] == 3 and seen[-1] == 10 and result.metrics["accuracy"] == 1.0
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 10


def test_the_folder_of_another_request_is_refused_with_both_values(tmp_path):
    classify(make_run(Small(10**6)), RunFolder(tmp_path / "run"))
    with pytest.raises(UsageError, match="plan: exhaustive there, 1:2,2:1 here"):
        classify(make_run(Small(10**6), plan="1:2,2:1"), RunFolder(tmp_path / "run"))


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_run_json_is_named(tmp_path, content):
    classify(make_run(Small(10**6)), RunFolder(tmp_path / "run"))
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(AvarcError, match=r"run\.json"):
        classify(make_run(Small(10**6)), RunFolder(tmp_path / "run"))


def test_a_resumed_run_starts_at_a_whole_group(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    classify(make_run(Small(10**6), tokens_per_batch=256), RunFolder(whole))  # groups of 4 images
    lines = (whole / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    cut.mkdir()
    (cut / "run.json").write_bytes((whole / "run.json").read_bytes())
    (cut / "predictions.jsonl.part").write_bytes(b"".join(lines[:6]) + lines[6][:9])
    seen = []
    run = make_run(Small(10**6), tokens_per_batch=256)
    classify(run, RunFolder(cut), progress=lambda done, _: seen.append(done))
    assert seen == [4, 8, 10]
    assert (cut / "predictions.jsonl").read_bytes() == b"".join(lines)


def test_two_processes_cannot_write_one_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.lock(), pytest.raises(AvarcError, match="another process"):
        _in_another_process(tmp_path / "run")


def _in_another_process(path):
    """The lock is the process's, so the rival must be one."""
    code = (
        "import sys, pathlib; from avarc_cli.results.folder import RunFolder; from avarc_cli.errors import AvarcError\n"
        "try:\n    with RunFolder(pathlib.Path(sys.argv[1])).lock(): pass\n"
        "except AvarcError as e: sys.exit(e.what)"
    )
    rival = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    if rival.returncode:
        raise AvarcError(rival.stderr)


def test_a_kill_before_the_first_prediction_leaves_a_usable_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json.tmp").write_text("{")
    (folder / "run.lock").touch()
    assert classify(make_run(Small(10**6)), RunFolder(folder)).metrics["accuracy"] == 1.0


def test_a_finished_run_gives_its_numbers_again(tmp_path):
    first = classify(make_run(Small(10**6)), RunFolder(tmp_path / "run"))
    again = classify(make_run(Small(0)), RunFolder(tmp_path / "run"))
    assert again.metrics == first.metrics and again.records == first.records


def test_values_that_are_no_numbers_stop_the_run(tmp_path):
    class Overflowing(Small):
        def extend(self, state, stop, *, hold):
            return super().extend(state, stop, hold=hold) * float("nan")

    with pytest.raises(AvarcError, match="not a number"):
        classify(make_run(Overflowing(10**6)), None)


def test_lines_hold_no_times_and_metrics_do(tmp_path):
    classify(make_run(Small(10**6)), RunFolder(tmp_path / "run"))
    assert "second" not in (tmp_path / "run" / "predictions.jsonl").read_text()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["seconds_per_image"] > 0


def test_a_run_does_not_take_the_place_of_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match="it is not a folder"):
        RunFolder(tmp_path / "run").prepare()
