"""One process of several that train together, without a launcher, as on a machine of its own.

Usage: train_together RANK COUNT, which reads a JSON list of [PORT, STEPS, WORD, ...] and runs `avarc WORD ...` for
each. It is interrupted after these steps; 0 for to the end; after -N, the last process gets SIGTERM. Prints exit codes.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from typing import Any

from avarc_cli.cli import main as avarc
from avarc_cli.train import loop, update


def interrupting(steps: int, *, is_last: bool) -> Any:
    """`loop.average`, which raises in the step after that number of steps, or gets the signal."""
    left = abs(steps)

    def average(*args: Any) -> None:
        nonlocal left
        if left == 0 < steps:
            raise KeyboardInterrupt
        if left == 0 > steps and is_last:
            os.kill(os.getpid(), signal.SIGTERM)
        left -= 1
        update.average(*args)

    return average


def main(rank: int, count: int) -> None:
    for port, steps, *words in json.load(sys.stdin):
        where = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in where.items()} | {"MASTER_ADDR": "localhost"}
        setattr(loop, "average", interrupting(steps, is_last=rank == count - 1))  # noqa: B010  # of which mypy knows nothing
        print("ended with", avarc(words), flush=True)
        # What is left of an interrupted training may wait for the other process when it is collected: it must not
        # happen while that one already waits in the next training.
        gc.collect()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
