"""What a machine with a GPU is to measure, in at most 15 minutes: one file of figures a line of `plan`.

usage: python tests/benchmarks/gpu.py FOLDER [--quick] [--limit SECONDS]

Kernels checked compiled and timed; precisions and kernels of whole models; CUDA graphs; the paper's plan in a cascade;
and a cache classified by one process and by one on each GPU. The most important come first. A measurement that fails,
takes too long or does not begin in time is named at the end (exit status 1), and the others are made. --quick runs all
on tiny shapes, also without a GPU: whether it works. See docs/gpu.md for what becomes of the files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import figures  # puts avarc on the path
import torch

from avarc_cli.layers.precision import PRECISIONS, available
from avarc_kernels import flash_missing, triton_missing

ALL, SOME = tuple(PRECISIONS), ("bf16", "fp8")
Line = tuple[str, str, int]  # name, command, seconds that it may take


def plan(device: str, *, quick: bool) -> Iterator[Line]:
    """The measurements, the most important first."""
    flash = "" if flash_missing(torch.device(device)) else ",flash"
    triton = ",triton" if device == "cuda" and not triton_missing(torch.device(device)) else ""
    options = f"--kernels torch{triton}{flash} --device {device} --json"
    kernels = "python -m avarc_kernels.bench --json --eager --quick"
    if quick:
        yield "gpu-kernels", f"{kernels} --op causal_attention --op swiglu", 240
        yield "gpu-tiny", f"avarc bench --quick --rounds 1 --precision fp32,bf16 --graphs {options}", 120
        cascade = f"10 bf16+fp32 --tiny --device {device} --json"
        yield "gpu-tiny-plan", f"python tests/benchmarks/paper_plan.py 1 {cascade}", 120
        return
    yield "gpu-d16", f"avarc bench --shape d16 --pairs 64 --rounds 3 --precision {_there(ALL, device)} {options}", 180
    yield "gpu-graphs", f"avarc bench --shape d16 --pairs 4 --precision bf16 --graphs {options}", 120
    cascade = f"4 100 fp32,bf16,bf16+fp32 --device {device} --json"
    yield "gpu-paper-plan", f"python tests/benchmarks/paper_plan.py {cascade}", 180
    for shape, pairs in (("llamagen-l", 64), ("rar-b", 64), ("randar-l", 64), ("d30", 16)):
        some = f"--pairs {pairs} --rounds 2 --precision {_there(SOME, device)}"
        yield f"gpu-{shape}", f"avarc bench --shape {shape} {some} {options}", 120
    yield "gpu-kernels", kernels, 240
    yield "gpu-whole-runs", "python tests/benchmarks/whole_runs.py --json", 180


def _there(names: Sequence[str], device: str) -> str:
    """Those of these precisions that the device has."""
    return ",".join(name for name in names if name in available(torch.device(device)))


def measure(line: Line, folder: Path) -> str:
    """Write the line's file; why there is none, or ""."""
    name, command, seconds = line
    try:
        found = figures.record(command.split(), timeout=seconds)
    except (subprocess.SubprocessError, json.JSONDecodeError) as problem:
        return str(problem)
    figures.write(found, folder / f"{name}.json")
    wrong = found["about"].get("wrong", 0)
    return f"{wrong} of our implementations failed or exceeded their error bounds" if wrong else ""


def measure_devices(folder: Path, device: str, seconds: float, *, quick: bool) -> str:
    """Classify a cache of the digits by one process and by one on each GPU; what went wrong, or ""."""
    cases: list[dict[str, object]] = []
    began = time.monotonic()
    several = "--devices all" if device == "cuda" else "--devices cpu:2"
    with tempfile.TemporaryDirectory() as scratch:
        cache = f"{scratch}/t.h5"
        images = f"avarc encode avarc_cli/assets/digits/test {'--limit 4' if quick else '--samples 7'} --out {cache}"
        try:
            figures.run(images.split(), timeout=seconds).check_returncode()
            for where in (f"--device {device}", several):
                started = time.monotonic()
                command = f"avarc classify {cache} {where}".split()
                figures.run([*command, "--out", f"{scratch}/{len(cases)}"], timeout=seconds).check_returncode()
                cases.append({"name": where, "seconds": time.monotonic() - started})
        except subprocess.SubprocessError as problem:
            return str(problem)
        one, all_of_them = (Path(scratch, str(i), "predictions.jsonl").read_bytes() for i in range(2))
    command = f"avarc classify t.h5 {several}".split()
    described = figures.described(command, {"kind": "devices", "cases": cases}, seconds=time.monotonic() - began)
    figures.write(described, folder / "gpu-devices.json")
    return "" if one == all_of_them else "the predictions differ"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--limit", type=int, default=840, help="seconds in which all but the devices end")
    asked = parser.parse_args()
    device, started, missed = "cuda" if torch.cuda.is_available() else "cpu", time.monotonic(), {}
    if device == "cpu" and not asked.quick:
        print("no GPU: only --quick makes sense here", file=sys.stderr)
        return 2
    asked.folder.mkdir(parents=True, exist_ok=True)
    for line in plan(device, quick=asked.quick):
        left = asked.limit - (time.monotonic() - started)
        missed[line[0]] = measure((*line[:2], min(line[2], int(left))), asked.folder) if left > 30 else "no time left"
        print(f"{time.monotonic() - started:4.0f} s  {line[0]}  {missed[line[0]] or 'done'}", flush=True)
    if device == "cuda" and torch.cuda.device_count() < 2:
        print("devices  skipped: needs two GPUs")
    else:
        missed["devices"] = measure_devices(asked.folder, device, 60, quick=asked.quick)
        print(f"{time.monotonic() - started:4.0f} s  devices  {missed['devices'] or 'done'}", flush=True)
    return int(any(missed.values()))


if __name__ == "__main__":
    sys.exit(main())
