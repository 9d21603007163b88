"""Killed at any step or moment, or stopped by a full disk, a rerun of encoding gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import scripts

SCRIPTS = Path(__file__).parent / "scripts"


def run(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    scripts.run(SCRIPTS / name, folder, log=tmp_path / "log")


def test_after_a_kill_at_any_step_or_a_full_disk_a_rerun_gives_the_same_bytes(tmp_path):
    run("kill_everywhere.py", tmp_path)


def test_after_kills_at_50_random_moments_a_rerun_gives_the_same_bytes(tmp_path):
    run("kill_at_random_moments.py", tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_processes_that_decode_end_when_their_parent_is_killed(tmp_path):
    run("kill_parent_of_workers.py", tmp_path)
