"""How long `avarc classify` takes to start and to load a d16's weights, 1.24 GB of mapped safetensors, warm.

Processes in turns, until the model is loaded: a plain script that imports torch and maps the file; the same that also
reads every number; avarc's loading. Then the whole command on one image under two classes, of which it scores the first
scale. Each runs once before, so that files are in the page cache and avarc knows their digests.
Results: docs/execution.md.

usage: python tests/benchmarks/startup.py [ROUNDS] [--json]
"""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import load_golden
from figure_tables import Cell, Table, show, wants_json

MAP = """
import sys, torch
from safetensors import safe_open
with safe_open(sys.argv[1], "pt", "cpu") as file:
    tensors = {key: file.get_tensor(key) for key in file.keys()}
"""
READ = MAP + "for tensor in tensors.values(): tensor.aminmax()\n"
READY = """
import time
print(time.clock_gettime(time.CLOCK_MONOTONIC), time.process_time())
"""
LOAD = """
import sys
from avarc_cli import ModelSpec, load_model
load_model(ModelSpec(sys.argv[1], sys.argv[2]))
"""


def until_ready(code: str, *words: str) -> tuple[float, float]:
    """Wall and CPU seconds from the start of Python until it has executed this."""
    began = time.clock_gettime(time.CLOCK_MONOTONIC)
    ended, cpu = subprocess.check_output([sys.executable, "-c", code + READY, *words], text=True).split()
    return float(ended) - began, float(cpu)


def whole(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    if status:
        raise RuntimeError(f"{command} failed")
    return wall, usage.ru_utime + usage.ru_stime


def main(rounds: int, *, as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["AVARC_HOME"] = str(folder / "home")
        golden = load_golden("var_d16")
        models = [str(folder / "var.safetensors"), str(folder / "vae.safetensors")]
        for path, part in zip(models, ("var", "vae"), strict=True):
            save_file({key: tensor.contiguous() for key, tensor in golden.tensors(part).items()}, path)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / "0.png")
        of_models, tokens = ["--model", models[0], "--tokenizer", models[1]], str(folder / "t.h5")
        avarc = [sys.executable, "-m", "avarc_cli", "--quiet"]
        whole([*avarc, "encode", str(folder / "0.png"), *of_models, "--preprocess", "none", "--out", tokens])
        ways = {
            "plain: import torch, map the file": partial(until_ready, MAP, models[0]),
            "plain, and read every number": partial(until_ready, READ, models[0]),
            "avarc: start and load": partial(until_ready, LOAD, *models),
            "avarc classify: one image, two classes": partial(
                whole, [*avarc, "classify", tokens, *of_models, "--classes", "0,1", "--plan", "1:1"]
            ),
        }
        seconds = {name: [way()] for name, way in ways.items()}
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(way())
    names = ("CPU seconds, least", "median", "seconds, least", "median")
    rows: list[list[Cell]] = []
    for name, measured in seconds.items():
        wall, cpu = zip(*measured[1:], strict=True)
        rows.append([name, min(cpu), median(cpu), min(wall), median(wall)])
    show(Table([("", ""), *((name, ".2f") for name in names)], rows), as_json=as_json, rounds=rounds)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7, as_json=as_json)
