"""How threads wait: seconds to encode and to score, alone and beside a process that uses one core.

Each setting of OpenMP is a process of its own, which encodes an image with the published VQ-VAE's shape (random
weights) and scores 24 digits under 10 classes. Results: docs/execution.md.

usage: python tests/benchmarks/waiting.py [ROUNDS] [--json]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

from figure_tables import Cell, Table, say, show, wants_json

SETTINGS = {
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin briefly": {"GOMP_SPINCOUNT": "1000"},
    "spin for milliseconds": {"GOMP_SPINCOUNT": "10000"},
}
IMAGES = 24
MEASURE = "--measure"  # of a process with one setting


def measure(rounds: int) -> tuple[float, float]:
    """Seconds to encode an image, and to score the digits: medians over the rounds, after one that warms up."""
    import numpy as np
    import torch
    from encoder import ways

    from avarc_cli import heap
    from avarc_cli.classifier import load_classifier
    from avarc_cli.data.datasets import open_images
    from avarc_cli.scoring.engine import score_group
    from avarc_cli.tokens import read
    from avarc_cli.zoo.local_files import ASSETS

    model, pixels, _ = ways(torch.rand(1, 3, 256, 256) * 2 - 1)["avarc"]
    classifier = load_classifier("digits")
    with tempfile.TemporaryDirectory() as folder:
        digits = open_images([ASSETS / "digits" / "test"]).first(IMAGES)
        cache = read(classifier.encode(digits, Path(folder) / "t.h5", workers=0).path)
        request, tokens_GSL = classifier.request(cache.header), cache.tokens(np.arange(IMAGES))
    with torch.inference_mode(), heap.keep_freed_memory():
        encoding = _median(lambda: model.encode(pixels), rounds)
        scoring = _median(lambda: score_group(classifier.model.likelihood, tokens_GSL, request), rounds)
    return encoding, scoring


def _median(work: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process computes inside."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main(rounds: int, *, as_json: bool) -> None:
    rows: list[list[Cell]] = []
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name, setting in SETTINGS.items():
        environ = {key: value for key, value in os.environ.items() if key not in own} | setting
        cells: list[Cell] = [f"{name} (`{'='.join(*setting.items())}`)"]
        for circumstances in (nullcontext(), busy_core()):
            with circumstances:
                command = [sys.executable, __file__, MEASURE, str(rounds)]
                found = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)
            cells += json.loads(found.stdout)
        rows.append(cells)
        say(f"{name}: measured")
    columns = [("threads", ""), ("alone: encode, s", ".2f"), ("score, s", ".2f")]
    show(Table([*columns, ("beside a busy core: encode, s", ".2f"), ("score, s", ".2f")], rows), as_json=as_json)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == [MEASURE]:
        print(json.dumps(measure(int(words[1]))))
    else:
        as_json = wants_json(words)
        main(int(words[0]) if words else 5, as_json=as_json)
