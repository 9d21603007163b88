"""Runs: out of memory, interrupted, resumed, damaged, and folders that belong to something else."""

import json
from dataclasses import replace
from subprocess import PIPE

import numpy as np
import pytest
import torch
from programs import start
from small_run import SmallModel, make_run

from avarc_cli.data.labels import UNKNOWN
from avarc_cli.errors import AvarcError, Interrupted, UsageError
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.run import classify


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
    result = classify(make_run(SmallModel(100, error), plan=plan), RunFolder(tmp_path / "run"), say=said.append)
    assert result.metrics["accuracy"] == 1.0 and len(result.records) == 10
    assert said and all(message.startswith("out of memory: continuing with") for message in said)
    assert len(said) <= 3, "the smaller batch is kept for the rest of the run"


def test_when_one_image_is_too_much_its_batch_is_halved():
    said = []
    assert classify(make_run(SmallModel(40)), None, say=said.append).metrics["accuracy"] == 1.0
    assert "batches of 256 tokens instead of 512" in "".join(said)


def test_too_little_memory_for_one_pair_is_an_error(tmp_path):
    with pytest.raises(AvarcError, match="not enough memory to score one pair"):
        classify(make_run(SmallModel(0)), RunFolder(tmp_path / "run"))


def test_other_errors_are_not_mistaken_for_out_of_memory():
    with pytest.raises(RuntimeError, match="shape"):
        classify(make_run(SmallModel(0, RuntimeError("shape mismatch"))), None)


def test_an_interrupted_run_says_what_is_kept_and_resumes(tmp_path):
    class Impatient(SmallModel):
        def extend(self, state, stop, *, keep_cache_segments):
            if int(state["tokens"][0, 0]) == 3:
                raise KeyboardInterrupt
            return super().extend(state, stop, keep_cache_segments=keep_cache_segments)

    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="3 of 10 images are kept"):
        classify(make_run(Impatient(10**6), tokens_per_batch=64), RunFolder(folder))
    seen = []
    result = classify(
        make_run(SmallModel(10**6), tokens_per_batch=64), RunFolder(folder), progress=lambda n, _: seen.append(n)
    )
    assert seen[0] == 3 and seen[-1] == 10 and result.metrics["accuracy"] == 1.0
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 10


def test_the_folder_of_another_request_is_refused_with_both_values(tmp_path):
    classify(make_run(SmallModel(10**6)), RunFolder(tmp_path / "run"))
    with pytest.raises(UsageError, match="plan: exhaustive there, 1:2,2:1 here"):
        classify(make_run(SmallModel(10**6), plan="1:2,2:1"), RunFolder(tmp_path / "run"))


def test_predictions_with_another_label_are_made_again(tmp_path):
    run, said = make_run(SmallModel(10**6)), []
    classify(run, RunFolder(tmp_path / "run"))
    renamed = replace(run, labels=np.where(run.labels == 3, UNKNOWN, run.labels))
    result = classify(renamed, RunFolder(tmp_path / "run"), say=said.append)
    assert said == [f"2 images have other tokens or labels than when '{tmp_path / 'run'}' was made: classifying again"]
    assert [record["label"] for record in result.records] == [0, 1, 2, None, 0, 1, 2, None, 0, 1]


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_run_json_is_named(tmp_path, content):
    classify(make_run(SmallModel(10**6)), RunFolder(tmp_path / "run"))
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(AvarcError, match=r"run\.json"):
        classify(make_run(SmallModel(10**6)), RunFolder(tmp_path / "run"))


def test_a_resumed_run_starts_at_a_whole_group(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    classify(make_run(SmallModel(10**6), tokens_per_batch=256), RunFolder(whole))  # groups of 4 images
    lines = (whole / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    cut.mkdir()
    (cut / "run.json").write_bytes((whole / "run.json").read_bytes())
    (cut / "predictions.jsonl.part").write_bytes(b"".join(lines[:6]) + lines[6][:9])
    seen = []
    run = make_run(SmallModel(10**6), tokens_per_batch=256)
    classify(run, RunFolder(cut), progress=lambda done, _: seen.append(done))
    assert seen == [4, 8, 10]
    assert (cut / "predictions.jsonl").read_bytes() == b"".join(lines)


def test_two_processes_cannot_write_one_run(tmp_path):
    with start("hold_lock", "run", tmp_path / "run", stdin=PIPE, stdout=PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AvarcError, match="another process"), RunFolder(tmp_path / "run").lock():
            pass
        holder.stdin.close()


def test_a_kill_before_the_first_prediction_leaves_a_usable_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json.tmp").write_text("{")
    (folder / "run.lock").touch()
    assert classify(make_run(SmallModel(10**6)), RunFolder(folder)).metrics["accuracy"] == 1.0


def test_a_finished_run_gives_its_numbers_again(tmp_path):
    first = classify(make_run(SmallModel(10**6)), RunFolder(tmp_path / "run"))
    again = classify(make_run(SmallModel(0)), RunFolder(tmp_path / "run"))
    assert again.metrics == first.metrics and list(again.records) == list(first.records)


def test_nan_scores_stop_the_run(tmp_path):
    class Overflowing(SmallModel):
        def extend(self, state, stop, *, keep_cache_segments):
            return super().extend(state, stop, keep_cache_segments=keep_cache_segments) * float("nan")

    with pytest.raises(AvarcError, match="not a number"):
        classify(make_run(Overflowing(10**6)), None)


def test_predictions_contain_no_times_and_metrics_do(tmp_path):
    classify(make_run(SmallModel(10**6)), RunFolder(tmp_path / "run"))
    assert "second" not in (tmp_path / "run" / "predictions.jsonl").read_text()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["seconds_per_image"] > 0


def test_a_run_does_not_replace_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match="it is not a folder"):
        RunFolder(tmp_path / "run").prepare()
