"""Runs that are killed again and again end with the same files as a run that was not."""

from programs import run


def test_after_kills_at_random_moments_a_rerun_gives_the_same_bytes(tmp_path):
    done = run("kill_runs", tmp_path)
    assert done.returncode == 0, done.stderr
