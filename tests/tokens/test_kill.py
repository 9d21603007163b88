"""kill -9 or SIGTERM at every step of an encoding run, and at random moments: a rerun gives the same bytes.

One helper process imports torch once and forks a child for every point of death.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HELPER = '''
import os, runpy, resource, signal, sys
from pathlib import Path

import torch
from avarc_cli.data import Preprocess
from avarc_cli.errors import AvarcError
from avarc_cli.tokens import Shard, encode, read

torch.set_num_threads(1)
os.fsync = lambda descriptor: None  # a kill is no power cut: the kernel keeps what was written
stub = runpy.run_path(sys.argv[1])
folder = Path(sys.argv[2])
OUT = folder / "t.h5"
STEPS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "fcntl.lockf", "shutil.rmtree"}


def run(on_encode=lambda: None, out=OUT, **options):
    return encode(images, stub["StubTokenizer"](on_encode), Preprocess("none", 8), out, samples=2, unit=2, **options)


def in_child(work):
    """0: it came to its end; 1: it raised; below 0: it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def signal_at(step):
    return signal.SIGTERM if step % 3 == 1 else signal.SIGKILL


class DieAt:
    """Dies at the n-th step: a file opened, renamed or removed, a batch encoded."""

    def __init__(self, step):
        self.left, self.signal = step, signal_at(step)

    def __call__(self):
        if self.left == 0:
            os.kill(os.getpid(), self.signal)
        self.left -= 1

    def audit(self, event, args):
        if event in STEPS:
            self()


def killed_at(step, **options):
    killer = DieAt(step)
    sys.addaudithook(killer.audit)
    run(killer, **options)


def leftovers():
    return sorted(path.name for path in folder.iterdir() if path.name not in {"images", "whole.h5"})
'''

EVERY_STEP = """
images = stub["make_images"](folder / "images", 5)
images.paths[3].write_bytes(b"unreadable")
run(out=folder / "whole.h5")
whole = (folder / "whole.h5").read_bytes()
step = 0
while True:
    code = in_child(lambda: killed_at(step))
    if code == 0:
        break
    assert code == -signal_at(step), (step, code)
    if step % 4 == 0:  # killed again, somewhere else, before it may finish
        in_child(lambda: killed_at(step // 2))
    result = run()
    assert result.images == 4 and len(result.unreadable) == 1, (step, result)
    assert OUT.read_bytes() == whole, step
    assert leftovers() == ["t.h5"], (step, leftovers())
    OUT.unlink()
    step += 1
assert step > 30, step  # or the steps are not seen
assert OUT.read_bytes() == whole

# a shard of two, before and after the other one, which leaves a part of the cache in the file
for first in (2, 1):
    step = 0
    while True:
        OUT.unlink()
        if first == 2:
            run(shard=Shard(1, 2))
        code = in_child(lambda: killed_at(step, shard=Shard(first, 2)))
        assert code in {0, -signal_at(step)}, (first, step, code)
        results = [run(shard=Shard(2, 2)), run(shard=Shard(1, 2))]
        assert results[-1].whole and OUT.read_bytes() == whole, (first, step)
        assert leftovers() == ["t.h5"], (first, step, leftovers())
        if code == 0:
            break
        step += 4
    assert step > 20, step

# with workers, which outlive their parent for a while: they hold nothing that blocks the next run
OUT.unlink()
batches = DieAt(2)
assert in_child(lambda: run(batches, workers=2)) == -9
assert (folder / "t.h5.parts").is_dir()
assert run(workers=2).encoded < 5
assert OUT.read_bytes() == whole
"""

FULL_DISK = """
def with_limit(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run()
    except AvarcError as error:
        assert "cannot write" in error.what and "finished units are kept" in error.fix, error
        os._exit(7)

OUT.unlink()
for limit, parts in ((300, 0), (750, 0), (3000, 3)):  # not even the request; no part; parts, but not the cache
    assert in_child(lambda: with_limit(limit)) == 7
    assert len(list((folder / "t.h5.parts").glob("*.npz"))) == parts, limit
assert run().encoded == 0
assert OUT.read_bytes() == whole
assert leftovers() == ["t.h5"], leftovers()
"""


RANDOM_MOMENTS = """
import random, time

images = stub["make_images"](folder / "many", 40)
pause = lambda: time.sleep(0.002)
run(out=folder / "whole.h5")
whole = (folder / "whole.h5").read_bytes()
began = time.monotonic()
in_child(lambda: run(pause))
length = time.monotonic() - began
OUT.unlink()
moment = random.Random(0)
kills = 0
for number in range(500):  # each goes on with what the one before left behind
    pid = os.fork()
    if pid == 0:
        run(pause)
        os._exit(0)
    time.sleep(moment.uniform(0, length))
    os.kill(pid, signal_at(number))
    kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) < 0
    if OUT.exists():
        assert OUT.read_bytes() == whole, number
        OUT.unlink()
    if kills == 50:
        break
run()
assert OUT.read_bytes() == whole
assert sorted(path.name for path in folder.iterdir()) == ["many", "t.h5", "whole.h5"]
"""


WORKERS = """
import time

stub = runpy.run_path(sys.argv[1])
images = stub["make_images"](folder / "images", 200)
pids = folder / "pids"
pids.mkdir()
load = type(images).load


def noted(self, *arguments):
    (pids / str(os.getpid())).touch()
    return load(self, *arguments)


type(images).load = noted


class Large(stub["StubTokenizer"]):  # a batch is more than a pipe holds, so that workers wait to hand it over
    image_size = 64

    def encode(self, images):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


pixels = Preprocess("fit", 64)
assert in_child(lambda: encode(images, Large(), pixels, OUT, batch_size=8, workers=2)) == -9
workers = [int(path.name) for path in pids.iterdir()]
assert len(workers) == 2
while any(map(alive, workers)):
    time.sleep(0.05)
"""


def run_helper(body: str, tmp_path: Path) -> None:
    script, log = tmp_path / "helper.py", tmp_path / "log"
    script.write_text(HELPER + body)
    (tmp_path / "work").mkdir()
    conftest = Path(__file__).with_name("conftest.py")
    with log.open("w") as file:  # not a pipe: orphaned workers would keep it open
        command = [sys.executable, str(script), str(conftest), str(tmp_path / "work")]
        done = subprocess.run(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, check=False, timeout=300)
    assert done.returncode == 0, log.read_text()


def test_after_a_kill_at_any_step_or_a_full_disk_a_rerun_gives_the_same_bytes(tmp_path):
    run_helper(EVERY_STEP + FULL_DISK, tmp_path)


def test_after_kills_at_50_random_moments_a_rerun_gives_the_same_bytes(tmp_path):
    run_helper(RANDOM_MOMENTS, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks the processes up in /proc")
def test_processes_that_decode_end_when_their_parent_is_killed(tmp_path):
    run_helper(WORKERS, tmp_path)
