"""`avarc classify --memory` against the peak memory of the process that ran it, d16 shape, the paper's plan.

Random weights and images; the peak is the largest resident set that the operating system counted for the command.
Results: docs/performance.md.

usage: python tests/benchmarks/memory.py [CLASSES] [MEMORY ...] [--json]
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import load_golden
from figure_tables import Cell, Table, say, show, wants_json

AVARC = [sys.executable, "-m", "avarc_cli", "--quiet"]


def peak_of(command: list[str]) -> tuple[int, int, float]:
    """Exit code, peak bytes and seconds of a command."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, time.monotonic() - began


def main(classes: int, limits: list[str], *, as_json: bool) -> None:
    rows: list[list[Cell]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        golden = load_golden("var_d16")
        torch.save(golden.tensors("var"), folder / "VAR.pth")
        torch.save(golden.tensors("vae"), folder / "VAE.pth")
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / "0.png")
        models = ["--model", str(folder / "VAR.pth"), "--tokenizer", str(folder / "VAE.pth")]
        tokens = str(folder / "t.h5")
        encode = [*AVARC, "encode", str(folder / "0.png"), *models, "--preprocess", "none", "--samples", "3"]
        subprocess.run([*encode, "--out", tokens], check=True, stdout=subprocess.DEVNULL)
        candidates = ",".join(map(str, range(classes)))
        for limit in limits:
            options = ["--plan", "paper", "--classes", candidates, "--out", str(folder / f"run-{limit}")]
            command = [*AVARC, "classify", tokens, *models, *options]
            code, peak, seconds = peak_of(command if limit == "none" else [*command, "--memory", limit])
            rows.append([limit, code, peak / 2**30, seconds])
            say(f"--memory {limit}: exit code {code}")
    columns = [("`--memory`", ""), ("exit code", ""), ("peak of the process, GiB", ".2f"), ("seconds", ".0f")]
    show(Table(columns, rows), as_json=as_json)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    limits = sys.argv[2:] or ["none", "1GiB", "3GiB", "4GiB", "8GiB"]
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, limits, as_json=as_json)
