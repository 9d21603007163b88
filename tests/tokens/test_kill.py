"""Killed at any step or moment, or stopped by a full disk, a rerun of encoding gives the same bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from programs import start

PROGRAMS = ("kill_encoding", "kill_encoding_at_random", "kill_parent_of_workers", "kill_import")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of all programs, and how each ended."""
    folder = tmp_path_factory.mktemp("kill")
    codes = folder / "codes"
    with codes.open("w") as out:  # not a pipe: processes that outlive the program would keep it open
        process = start("in_forks", folder, *PROGRAMS, stdin=subprocess.DEVNULL, stdout=out)
        try:
            process.wait(timeout=1800)
        finally:
            process.kill()
    return folder, dict(line.split() for line in codes.read_text().splitlines())


def check(program: str, ended: tuple[Path, dict[str, str]]) -> None:
    folder, codes = ended
    assert codes.get(program) == "0", (folder / f"{program}.log").read_text()


def test_after_a_kill_at_any_step_or_a_full_disk_a_rerun_gives_the_same_bytes(ended):
    check("kill_encoding", ended)


def test_after_kills_at_50_random_moments_a_rerun_gives_the_same_bytes(ended):
    check("kill_encoding_at_random", ended)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_processes_that_decode_end_when_their_parent_is_killed(ended):
    check("kill_parent_of_workers", ended)


def test_after_a_kill_at_any_step_an_import_and_an_export_give_the_same_bytes(ended):
    check("kill_import", ended)
