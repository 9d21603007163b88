"""Classify into FOLDER/ray on a local Ray of two workers, the first of which to score is killed.

Usage: classify_on_ray FOLDER. The folder of the run is named by a relative path.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from small_run import SmallModel, make_run
from torch import Tensor

from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.run import classify
from avarc_cli.work.workers import Workers

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


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    ray.init(num_cpus=2, configure_logging=False, log_to_driver=False, include_dashboard=False)
    seen: list[tuple[int, dict[str, float]]] = []
    run = make_run(Mortal(folder / "killed"), tokens_per_batch=64, save_likelihood=True)
    done = classify(run, RunFolder(Path("ray")), workers=RAY, progress=lambda *numbers: seen.append(numbers))
    assert (folder / "killed").is_dir() and done.complete
    assert seen[-1] == (10, {"accuracy": 1.0}), seen
    with pytest.raises(AvarcError, match="not enough memory"):
        classify(make_run(SmallModel(0)), RunFolder(folder / "broken"), workers=RAY)
    for folder_or_none, keep in ((None, False), (RunFolder(folder / "kept"), True)):
        with pytest.raises(UsageError, match="engine ray"):
            classify(run, folder_or_none, workers=RAY, keep_scores=keep)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
