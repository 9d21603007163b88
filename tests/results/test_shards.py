"""Runs whose chunks several processes compute: one after the other, at once, and into folders of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from benchmarks import bookkeeping
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import in_child
from programs import run, start
from small_run import SmallModel, make_run

from avarc_cli.errors import AvarcError, Interrupted, UsageError
from avarc_cli.results import lines, resume
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.merge import merge_runs
from avarc_cli.results.run import classify
from avarc_cli.tokens import request as request_module
from avarc_cli.work.shards import Shard

MODEL = SmallModel(10**6)


def do(folder: Path, i: int = 1, n: int = 1, *, say=lambda message: None, model=MODEL, **options):
    """Shard i of n of a run of ten images, which are scored one by one."""
    options = {"tokens_per_batch": 64, "save_likelihood": True} | options
    return classify(make_run(model, **options), RunFolder(folder), shard=Shard(i, n), say=say)


def contents(folder: Path) -> dict[str, bytes]:
    """All files, without the time in metrics.json."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if "metrics.json" in found:
        metrics = json.loads(found["metrics.json"])
        assert metrics.pop("seconds_per_image") > 0
        found["metrics.json"] = json.dumps(metrics).encode()
    return found


@pytest.fixture
def whole(tmp_path) -> dict[str, bytes]:
    do(tmp_path / "whole")
    return contents(tmp_path / "whole")


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_one_after_the_other_give_the_files_of_one_run(tmp_path, whole, order):
    results = [do(tmp_path / "run", i, 3) for i in order]
    assert [result.complete for result in results] == [False, False, True]
    assert [len(result.records) for result in results] == [0, 0, 10]
    assert contents(tmp_path / "run") == whole
    assert do(tmp_path / "run", order[0], 3, model=SmallModel(0)).complete, "it is done already"


def test_shards_at_once_give_the_files_of_one_run(tmp_path, whole):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [start("classify_shards", tmp_path / "run", **pipes) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for _ in range(5):
            for i, worker in enumerate(workers, start=1):
                worker.stdin.write(f"{i}/2\n")
                worker.stdin.flush()
            assert "True\n" in [worker.stdout.readline() for worker in workers]
            assert contents(tmp_path / "run") == whole
            shutil.rmtree(tmp_path / "run")
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_a_run_that_another_shard_begins_while_the_folder_is_looked_at_is_a_run(tmp_path, monkeypatch):
    folder, listed = tmp_path / "run", Path.iterdir
    folder.mkdir()

    def begun(path):
        if path == folder:
            (folder / "run.json").write_text("{}")
            (folder / "parts").mkdir(exist_ok=True)
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", begun)
    RunFolder(folder).check_contents()


def test_a_shard_that_another_process_classifies_is_refused(tmp_path):
    refused = []

    class Meanwhile(SmallModel):
        def extend(self, state, stop, *, keep_cache_segments):
            if not refused:
                refused.append(run("hold_chunks", tmp_path / "run" / "run", 5, 10).stdout)
            return super().extend(state, stop, keep_cache_segments=keep_cache_segments)

    do(tmp_path / "run", 2, 2, model=Meanwhile(10**6))
    assert "is being written by another process" in refused[0]


@pytest.mark.parametrize("n", [2, 11])  # 11: one of them has nothing to do
def test_shards_in_folders_of_their_own_are_joined(tmp_path, whole, n):
    shards = [tmp_path / str(i) for i in range(1, n + 1)]
    for i, folder in enumerate(shards, start=1):
        assert not do(folder, i, n).complete
    metrics = merge_runs(shards[::-1], tmp_path / "joined")
    assert metrics["accuracy"] == 1.0 and contents(tmp_path / "joined") == whole
    with pytest.raises(UsageError, match="holds a run already"):
        merge_runs(shards, tmp_path / "joined")


def test_shards_that_do_not_go_together_are_not_joined(tmp_path, whole):
    one, two, other, out = (tmp_path / name for name in ("1", "2", "other", "out"))
    do(one, 1, 2)
    do(two, 2, 2)
    do(other, 2, 2, plan="1:2,2:1", save_likelihood=False)
    with pytest.raises(UsageError, match="do not go together") as error:
        merge_runs([one, other], out)
    assert "plan: exhaustive there, 1:2,2:1 here" in error.value.why
    do(tmp_path / "batches", 2, 2, tokens_per_batch=256)
    with pytest.raises(UsageError, match="chunk_size: 1 there, 4 here"):
        raise_why(merge_runs, [one, tmp_path / "batches"], out)
    with pytest.raises(UsageError, match="chunk 0 is in"):
        raise_why(merge_runs, [one, two, Path(shutil.copytree(one, tmp_path / "copy"))], out)
    with pytest.raises(UsageError, match="5 of 10 chunks, the first is chunk 5"):
        raise_why(merge_runs, [one, empty(tmp_path)], out)
    for sources, what in [
        ([one, tmp_path / "whole"], "is a finished run"),
        ([one, tmp_path], "is not a run"),
        ([one, one], "nothing to join"),
        ([one, two, out], "is not a run"),
    ]:
        with pytest.raises(UsageError, match=what):
            merge_runs(sources, tmp_path / "new")
    assert not out.exists()
    (two / "parts" / "000007.npz").write_bytes(b"PK")
    with pytest.raises(AvarcError, match=r"chunk 7 in '.*' is corrupt"):
        merge_runs([one, two], out)
    do(two, 2, 2)
    saved = (two / "likelihood" / "8.npz").read_bytes()
    (two / "likelihood" / "8.npz").unlink()
    with pytest.raises(AvarcError, match=r"8\.npz' is missing"):
        merge_runs([one, two], out)
    (two / "likelihood" / "8.npz").write_bytes(saved)
    merge_runs([one, two], out)
    assert contents(out) == whole, "the folder of a merge that failed is continued"


def raise_why(function, *arguments):
    """Call it, and raise its error with the reason as its text."""
    try:
        function(*arguments)
    except UsageError as error:
        raise UsageError(error.why) from error


def empty(folder: Path) -> Path:
    do(folder / "empty", 1, 11)
    return folder / "empty"


def test_an_undivided_run_finishes_what_shards_began(tmp_path, whole):
    do(tmp_path / "run", 3, 3)
    seen = []
    classify(
        make_run(MODEL, 64, save_likelihood=True),
        RunFolder(tmp_path / "run"),
        progress=lambda done, numbers: seen.append((done, numbers)),
    )
    assert seen[0] == (4, {"accuracy": 1.0}) and seen[-1][0] == 10
    assert contents(tmp_path / "run") == whole


def test_changed_images_in_chunks_of_several_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(request_module, "MAX_CHUNKS", 4)  # of three images
    do(tmp_path / "run")
    do(tmp_path / "fresh", changed=(4,))
    said = []
    do(tmp_path / "run", changed=(4,), say=said.append)
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")
    assert "1 image has other tokens" in said[0] and len(said) == 1
    do(tmp_path / "run", say=said.append)
    assert len(said) == 2


def test_images_that_change_between_shards_are_scored_again_by_the_last(tmp_path):
    do(tmp_path / "fresh", changed=(1,))
    do(tmp_path / "run", 1, 2)
    assert do(tmp_path / "run", 2, 2, changed=(1,)).complete
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")


def test_a_run_is_continued_in_another_division(tmp_path, whole, monkeypatch):
    do(tmp_path / "run", 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(request_module, "MAX_CHUNKS", 4)
        seen = []
        classify(
            make_run(MODEL, 64, save_likelihood=True, changed=(1,)),
            RunFolder(tmp_path / "run"),
            shard=Shard(1, 4),
            progress=lambda done, _: seen.append(done),
        )
        assert seen == [0, 3] and not (tmp_path / "run" / "predictions.jsonl.part").exists()
        assert len(list((tmp_path / "run" / "parts").glob("*.npz"))) == 1, "of the others, none is whole"
    do(tmp_path / "run")
    assert contents(tmp_path / "run") == whole


def test_a_corrupt_chunk_is_computed_again(tmp_path, whole):
    do(tmp_path / "run", 1, 2)
    for number, content in enumerate((b"", b"PK", b"nonsense")):
        (tmp_path / "run" / "parts" / f"{number:06d}.npz").write_bytes(content)
    assert do(tmp_path / "run", 2, 2).complete
    assert contents(tmp_path / "run") == whole


def test_a_shard_of_another_request_is_refused(tmp_path):
    do(tmp_path / "run", 1, 2)
    with pytest.raises(UsageError, match="another run"):
        do(tmp_path / "run", 2, 2, plan="1:2,2:1", save_likelihood=False)


class Stopping(SmallModel):
    """Is interrupted when it scores for the n-th time."""

    def __init__(self, left: int) -> None:
        super().__init__(10**6)
        self.left = left

    def extend(self, state, stop, *, keep_cache_segments):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().extend(state, stop, keep_cache_segments=keep_cache_segments)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_division_and_any_interruptions_give_the_same_run(data):
    images, group, most = (data.draw(st.integers(1, high)) for high in (12, 4, 12))
    shards = data.draw(st.integers(1, 4))
    options = {"images": images, "tokens_per_batch": 64 * group, "save_likelihood": False}
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        do(folder / "whole", **options)
        patched.setattr(request_module, "MAX_CHUNKS", most)
        for stop, i in data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, shards)), max_size=4)):
            with suppress(Interrupted):
                do(folder / "run", i, shards, model=Stopping(stop), **options)
        for i in data.draw(st.permutations(range(1, shards + 1))):
            last = do(folder / "run", i, shards, **options)
        assert last.complete and contents(folder / "run") == contents(folder / "whole")


def test_memory_does_not_grow_with_the_number_of_images_and_each_prediction_is_read_a_few_times(tmp_path, monkeypatch):
    monkeypatch.setattr(request_module, "MAX_CHUNKS", 10**6)  # chunks of one group
    monkeypatch.setattr(bookkeeping, "GROUP", 32)
    monkeypatch.setattr(bookkeeping, "CLASSES", 10)  # metrics have a line for each
    monkeypatch.setattr(resume, "ROWS_PER_BLOCK", 32)
    parse = lines._parse
    read, peaks = [0], []
    monkeypatch.setattr(lines, "_parse", lambda *line: read.append(read.pop() + 1) or parse(*line))
    for images in (200, 800):
        folder, seen = tmp_path / str(images), []
        tracemalloc.start()
        with pytest.raises(Interrupted):
            bookkeeping.classify(images, folder, seen, bookkeeping.Ready(stop_after=images // 2))
        assert images // 2 <= seen[-1][0] < images
        done = bookkeeping.classify(images, folder, seen)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(done.records) == images and done.metrics["accuracy"] > 0
        assert read.pop() <= 2 * images, "once when it is continued, once when it is finished"
        read.append(0)
        seen.clear()
    assert peaks[1] - peaks[0] < 100_000, peaks  # 600 predictions in memory take 2 MB


def test_processes_that_finish_at_the_same_time_leave_one_run(tmp_path, whole):
    do(tmp_path / "run", 1, 3)
    pid = os.fork()
    if pid == 0:
        os._exit(in_child(lambda: do(tmp_path / "run", 2, 3)))
    do(tmp_path / "run", 3, 3)
    assert os.waitpid(pid, 0)[1] == 0
    assert contents(tmp_path / "run") == whole
