"""Killed at any step or moment, or stopped by a full disk, a rerun of encoding gives the same bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from programs import start


def run(program: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    with (tmp_path / "log").open("w") as log:  # not a pipe: processes that outlive the program would keep it open
        process = start(program, folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            code = process.wait(timeout=300)
        finally:
            process.kill()
    assert code == 0, (tmp_path / "log").read_text()


def test_after_a_kill_at_any_step_or_a_full_disk_a_rerun_gives_the_same_bytes(tmp_path):
    run("kill_encoding", tmp_path)


def test_after_kills_at_50_random_moments_a_rerun_gives_the_same_bytes(tmp_path):
    run("kill_encoding_at_random", tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_processes_that_decode_end_when_their_parent_is_killed(tmp_path):
    run("kill_parent_of_workers", tmp_path)


def test_after_a_kill_at_any_step_an_import_and_an_export_give_the_same_bytes(tmp_path):
    run("kill_import", tmp_path)
