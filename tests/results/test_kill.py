"""kill -9 or SIGTERM at 50 random moments of a run: a rerun finishes, and its files are the same bytes."""

import subprocess
import sys
from pathlib import Path

HELPER = """
import os, random, runpy, signal, sys, time
from dataclasses import replace
from pathlib import Path

import torch
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.run import classify

torch.set_num_threads(1)
os.fsync = lambda descriptor: None  # a kill is no power cut: the kernel keeps what was written
small = runpy.run_path(sys.argv[1])
folder = Path(sys.argv[2])
FILES = ["run.json", "predictions.jsonl", *(f"likelihood/{i}.npz" for i in range(10))]


class Slow(small["Small"]):
    def extend(self, *args, **options):
        time.sleep(0.002)
        return super().extend(*args, **options)


def run(name, model=small["Small"]):
    asked = small["make_run"](model(10**6), tokens_per_batch=64)
    asked = replace(asked, request=replace(asked.request, keep_tokens=True), save_json=True, save_likelihood=True)
    classify(asked, RunFolder(folder / name))


run("whole")
began = time.monotonic()
run("timed", Slow)
length = time.monotonic() - began
moment = random.Random(0)
kills = 0
for number in range(500):  # every run is begun five times, then finished
    name = f"killed-{number // 5}"
    pid = os.fork()
    if pid == 0:
        run(name, Slow)
        os._exit(0)
    time.sleep(moment.uniform(0, length))
    os.kill(pid, signal.SIGTERM if number % 3 == 1 else signal.SIGKILL)
    kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) < 0
    if number % 5 == 4:
        run(name)
        for file in FILES:
            assert (folder / name / file).read_bytes() == (folder / "whole" / file).read_bytes(), (number, file)
        there, whole = ({p.relative_to(folder / n) for p in (folder / n).rglob("*")} for n in (name, "whole"))
        assert there == whole, number
        if kills >= 50:
            break
"""


def test_after_kills_at_random_moments_a_rerun_gives_the_same_bytes(tmp_path):
    script, log = tmp_path / "helper.py", tmp_path / "log"
    script.write_text(HELPER)
    with log.open("w") as file:
        command = [sys.executable, str(script), str(Path(__file__).with_name("test_run.py")), str(tmp_path / "runs")]
        done = subprocess.run(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, log.read_text()
