"""Runs that are killed again and again end with the same files as a run that was not."""

from pathlib import Path

import scripts

KILL_RUNS = Path(__file__).parent / "scripts" / "kill_runs.py"


def test_after_kills_at_random_moments_a_rerun_gives_the_same_bytes(tmp_path):
    scripts.run(KILL_RUNS, tmp_path / "runs", log=tmp_path / "log")
