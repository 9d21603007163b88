"""Kill avarc reconstruct and avarc fid at their steps with files, run them again, and compare with undisturbed ones.

Usage: kill_evaluating FOLDER, which ends with an AssertionError where a number or a byte differs. Every third process
is ended by SIGTERM, the others by SIGKILL.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from golden_features import GoldenNetwork, save
from killing import DieAt, in_child, signal_at

from avarc_cli.cli import main as avarc
from avarc_cli.metrics import features, inception, protocol, reconstruction
from avarc_cli.zoo.local_files import ASSETS


def run(words: list[str]) -> tuple[str, str]:
    """What the command writes to standard output, and what it says."""
    shown, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        avarc(words)
    return shown.getvalue(), said.getvalue()


def run_and_die(words: list[str], step: int) -> None:
    DieAt(step).watch_files()
    assert run(words)[0], "it was ended by SIGTERM"


def contents(*folders: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in Path(folder).rglob("*") if path.is_file()}


def kill_at_steps(words: list[str], folder: Path, made: list[str], every: int) -> int:
    """Kill the command in new folders until it comes to its end, and finish it. Returns: steps of the last one.

    Args:
        made: the folders that it makes in the current one, and nothing else.
    """
    (folder / "undisturbed").mkdir(parents=True)
    os.chdir(folder / "undisturbed")
    undisturbed = run(words)[0], contents(*made)
    step, code = 0, -1
    while code:
        inside = folder / str(step)
        inside.mkdir()
        os.chdir(inside)
        code = in_child(partial(run_and_die, words, step))
        assert code in ({0, 1} if signal_at(step) == signal.SIGTERM else {0, -signal.SIGKILL}), (step, code)
        if code:
            shown, said = run(words)
            if "'again' exists" in said:  # the numbers were shown, and the rest was being deleted
                assert contents("again") == undisturbed[1] and not Path("again.parts/request.json").exists(), step
            else:
                assert (shown, contents(*made)) == undisturbed, (step, said)
                assert sorted(os.listdir()) == sorted(made), step
        step += every
    return step


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # what was written survives a kill; only a power cut could lose it
    reconstruction.BATCHES, features.CHUNK, protocol.POOLED, protocol.SPATIAL = 2, 100, 12, 7
    inception.load = lambda path, device: GoldenNetwork()  # type: ignore[assignment, return-value]
    (folder / "img").mkdir()
    for number, file in enumerate(sorted((ASSETS / "digits" / "test").rglob("*.png"))[::30]):
        (folder / "img" / f"{number:02d}.png").write_bytes(file.read_bytes())
    fake, real = save("fake", folder / "fake.npz"), save("real", folder / "real.npz")
    (folder / "weights.pth").write_bytes(b"weights")
    options = ["--workers", "0", "--device", "cpu", "--json"]
    words = ["reconstruct", str(folder / "img"), "--batch-size", "2", *options]
    steps = kill_at_steps([*words, "--out", "again"], folder / "pictures", ["again"], 14)
    assert steps > 30, f"only {steps} steps were seen"
    words = ["fid", str(fake), "-r", str(real), "--inception", str(folder / "weights.pth"), "--allow-few", *options]
    steps = kill_at_steps([*words, "--features", "kept"], folder / "features", ["kept"], 19)
    assert steps > 30, f"only {steps} steps were seen"


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
