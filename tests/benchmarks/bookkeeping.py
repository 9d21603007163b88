"""What a run costs beside scoring: time per image in each tenth of it, and memory, with a task that scores nothing.

Times are of this process's CPU, so that other processes on the machine do not count.
Results: docs/execution.md.

usage: python tests/benchmarks/bookkeeping.py [IMAGES] [FOLDER] [--json]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figure_tables import Cell, Table, say, show, wants_json

from avarc_cli.results.folder import RunFolder
from avarc_cli.results.parts import Division, ScoredChunk
from avarc_cli.results.run import RunResult, RunWork
from avarc_cli.results.unfinished import Opening
from avarc_cli.work.chunks import TaskLoader, Tick
from avarc_cli.work.locks import chunk_lock
from avarc_cli.work.shards import UNDIVIDED

GROUP, CLASSES = 256, 1000


def record(index: int) -> dict[str, Any]:
    """A prediction as long as those of ImageNet."""
    label, predicted = index % CLASSES, index * 7 % CLASSES
    best = [
        {
            "class": (predicted + k) % CLASSES,
            "id": f"n{predicted + k:08d}",
            "name": "a class",
            "posterior": 0.2 / (k + 1),
        }
        for k in range(5)
    ]
    return {
        "index": index,
        "path": f"val/n{label:08d}/ILSVRC2012_val_{index:08d}.JPEG",
        "prediction": predicted,
        "prediction_id": f"n{predicted:08d}",
        "prediction_name": "a class",
        "label": label,
        "label_id": f"n{label:08d}",
        "label_name": "another class",
        "label_rank": 0 if label == predicted else 3,
        "posterior": 0.2,
        "score": -4321.0123456789,
        "margin": 12.3456789,
        "near_tie": False,
        "bits_per_token": 9.87654321,
        "tokens_scored": 680_000,
        "best": best,
        "tokens_digest": f"{index:016x}",
    }


@dataclass(frozen=True)
class Ready:
    """A task that has the predictions already (`work.chunks.ChunkTask`)."""

    stop_after: int | None = None
    """Images after which the user interrupts it."""
    uses_gpu: bool = False

    def loader(self) -> TaskLoader[ScoredChunk]:
        raise NotImplementedError("only this process uses it")

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, ScoredChunk]]:
        for number, items in chunks.items():
            if self.stop_after is not None and items.start >= self.stop_after:
                raise KeyboardInterrupt
            yield number, ScoredChunk([record(index) for index in items], 0.001 * len(items))
            tick(len(items))


def is_current(records: Sequence[Mapping[str, Any]]) -> list[bool | None]:
    return [entry["tokens_digest"] == f"{entry['index']:016x}" for entry in records]


def classify(images: int, folder: Path, done: list[tuple[int, float]], task: Ready | None = None) -> RunResult:
    """Such a run, or the rest of it. done: gets the images done after each chunk, and when."""
    run = RunFolder(folder)
    run.prepare()
    with chunk_lock(run.lock_name, wait=False) as lock:
        division = Division.of(images, GROUP, CLASSES, {"temperature": 1.0})
        opening = Opening(run, division, is_current, UNDIVIDED, lock, say)
        work = RunWork(
            run, opening, task or Ready(), progress=lambda count, _: done.append((count, time.process_time()))
        )
        return work.do({"plan": "exhaustive"})


def memory(field: str) -> int:
    """Of this process, in KiB: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main(images: int, folder: Path, *, as_json: bool) -> None:
    done: list[tuple[int, float]] = []
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins here
    before, began = memory("VmRSS"), time.process_time()
    result = classify(images, folder, done)
    ended = time.process_time()
    counts, times = np.array([count for count, _ in done]), np.array([moment for _, moment in done])
    edges = np.interp(np.linspace(0, images, 11), counts, times)
    each = 1e6 * np.diff(edges) / (images / 10)
    tenths: list[tuple[str, str]] = [("tenth of the run", ""), ("microseconds an image", ".1f")]
    about: dict[str, Cell] = {
        "seconds until the first chunk": done[0][1] - began,
        "seconds after the last chunk": ended - done[-1][1],
        "MiB at the start": before / 1024,
        "MiB more at most": (memory("VmHWM") - before) / 1024,
    }
    rows = [[number, float(microseconds)] for number, microseconds in enumerate(each, 1)]
    of_all = Table([(name, ".1f") for name in about], [list(about.values())], "The whole run")
    show(Table(tenths, rows, "CPU time by tenths"), of_all, as_json=as_json)
    assert len(result.records) == images == result.metrics["images"]


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    if len(sys.argv) > 2:
        main(number, Path(sys.argv[2]), as_json=as_json)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(number, Path(temporary), as_json=as_json)
