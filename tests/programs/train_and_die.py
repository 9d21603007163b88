"""Run trainings one after the other, each in a fork; some are killed (SIGKILL). Print how each ended, as `in_child`.

Usage: train_and_die, which reads a JSON list of [WHEN, WORD, ...], where WHEN is "" for a training that is not killed,
"step N" in the middle of a step, "write N" while it writes its N-th checkpoint.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import killing
import torch._dynamo

from avarc_cli.cli import main as avarc
from avarc_cli.train import checkpoint_file, generator, loop, published_loss, update

IMPORTED = (generator, published_loss, torch._dynamo)  # here, they are in every fork; optimizers need the last one


def dying(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, of which this call (from 0) kills the process."""
    calls = itertools.count()

    def run(*args: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    return run


def train(when: str, words: list[str]) -> None:
    what, _, number = when.partition(" ")
    if what == "step":
        setattr(loop, "average", dying(update.average, int(number)))  # noqa: B010  # of which mypy knows nothing
    if what == "write":  # the content is there, under a temporary name; its digest is not
        checkpoint_file._digest = dying(checkpoint_file._digest, int(number) - 1)
    if code := avarc(words):
        raise SystemExit(code)


if __name__ == "__main__":
    for when, *words in json.load(sys.stdin):
        print(killing.in_child(partial(train, when, words)), flush=True)
