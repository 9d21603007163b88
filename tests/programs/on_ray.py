"""Classify, encode and draw on one local Ray of two workers; those that score and encode first are killed.

Usage: on_ray FOLDER, with 11 images of 8 pixels in FOLDER/images, of which the fourth is unreadable, and digits in
FOLDER/photos. Writes FOLDER/run, which is named by a relative path, FOLDER/elsewhere.h5, FOLDER/drawn, and what the
commands of documentation pages make in folders of the pages' names; each check that failed is printed.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from doc_blocks import avarc_words, command_lines, executed_by
from small_run import SmallModel, make_run
from torch import Tensor

from avarc_cli.cli import main as avarc
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.run import classify
from avarc_cli.work.workers import Workers
from programs.encode_elsewhere import Broken, Run, check_kill

RAY = Workers("ray")


class Mortal(SmallModel):
    """Kills the first worker that scores."""

    def __init__(self, killed: Path) -> None:
        """killed: a folder that is made when it happens."""
        super().__init__(10**6)
        self.killed = killed

    def extend(self, state: Any, stop: int, *, keep_cache_segments: int) -> Tensor:
        try:
            self.killed.mkdir()
        except FileExistsError:
            return super().extend(state, stop, keep_cache_segments=keep_cache_segments)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it was killed")


def check_run(folder: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    run = make_run(Mortal(folder / "killed-run"), tokens_per_batch=64, save_likelihood=True)
    done = classify(run, RunFolder(Path("run")), workers=RAY, progress=lambda *numbers: seen.append(numbers))
    assert (folder / "killed-run").is_dir() and done.complete
    assert seen[-1] == (10, {"accuracy": 1.0}), seen
    with pytest.raises(AvarcError, match="not enough memory"):
        classify(make_run(SmallModel(0)), RunFolder(folder / "broken"), workers=RAY)
    for folder_or_none, keep in ((None, False), (RunFolder(folder / "kept"), True)):
        with pytest.raises(UsageError, match="engine ray"):
            classify(run, folder_or_none, workers=RAY, keep_scores=keep)


def check_encoding(folder: Path) -> None:
    run = Run(folder, RAY)
    check_kill(run)
    with pytest.raises(AvarcError, match="not enough memory"):
        run.encode(Broken(), "broken.h5")


def check_drawing(folder: Path) -> None:
    words = ["sample", "3", "8", "--per-class", "3", "--batch-size", "2", "--engine", "ray", "--out", "drawn"]
    assert avarc(words) == 0


def check_documentation(folder: Path) -> None:
    for block in executed_by("test_ray.py"):
        of_page = folder / block.page.stem
        of_page.mkdir()
        (of_page / "photos").symlink_to(folder / "photos")
        os.chdir(of_page)
        for words in command_lines(block.replaced()):
            assert avarc(avarc_words(words)) == 0, words


def main(folder: Path) -> int:
    """The number of checks that failed."""
    torch.set_num_threads(1)
    os.chdir(folder)
    ray.init(num_cpus=2, configure_logging=False, log_to_driver=False, include_dashboard=False)
    failed = 0
    for check in (check_run, check_encoding, check_drawing, check_documentation):
        try:
            check(folder)
        except Exception:  # noqa: BLE001  # the other checks need not start Ray again
            traceback.print_exc()
            failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
