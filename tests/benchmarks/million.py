"""A million images of 32 pixels through the command line: rate and memory from the first unit to the last, and a kill.

Writes tar shards of PNGs, encodes them with the digits tokenizer, kills the command with -9 half-way, starts it again,
and prints the rate and the main process's memory of every tenth, and how soon work went on. Results: docs/encoding.md.

usage: python tests/benchmarks/million.py [IMAGES] [FOLDER]
"""

from __future__ import annotations

import io
import itertools
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from avarc_cli.tokens.request import default_batch_size, default_chunk_size

SHARDS, DISTINCT = 10, 500
POLL = 0.5  # seconds


def pictures() -> list[bytes]:
    """Smooth random PNGs of 32 x 32 pixels."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(DISTINCT):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).resize((32, 32)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def write_shards(folder: Path, count: int) -> None:
    files = pictures()
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard * count // SHARDS, (shard + 1) * count // SHARDS):
                for name, content in ((f"{i:08d}.png", files[i % DISTINCT]), (f"{i:08d}.cls", b"%d" % (i % 10))):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


class Watch:
    """The command while it works: finished units and memory, twice a second."""

    def __init__(self, command: list[str], parts: Path) -> None:
        self.parts, self.began = parts, time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.samples: list[tuple[float, int, int]] = []  # (seconds, units, bytes)

    def until(self, units: int) -> None:
        """Wait for this many finished units, or the end of the command."""
        while self.process.poll() is None and (not self.samples or self.samples[-1][1] < units):
            time.sleep(POLL)
            self.samples.append((time.monotonic() - self.began, self.units(), self.memory()))

    def units(self) -> int:
        return sum(1 for _ in self.parts.glob("*.npz")) if self.parts.is_dir() else 0

    def memory(self) -> int:
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0
        lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return 1024 * int(lines[0].split()[1]) if lines else 0


def report(samples: list[tuple[float, int, int]], all_units: int, images: int) -> None:
    """Images a second and the largest memory in each tenth of the units that these samples saw."""
    edges = np.linspace(0, all_units, 11)
    for low, high in itertools.pairwise(edges):
        inside = [s for s in samples if low <= s[1] <= high]
        if len(inside) > 1 and inside[-1][1] > inside[0][1]:
            seconds, units = inside[-1][0] - inside[0][0], inside[-1][1] - inside[0][1]
            rate, memory = units / all_units * images / seconds, max(s[2] for s in inside)
            print(f"units {low:.0f} to {high:.0f}: {rate:,.0f} images/s, {memory >> 20} MiB", flush=True)


def main(images: int, folder: Path) -> None:
    began = time.monotonic()
    if not (folder / "shards").is_dir():
        write_shards(folder / "shards", images)
        print(f"{images:,} pictures written in {time.monotonic() - began:.0f} s", flush=True)
    out = folder / "t.h5"
    avarc = [sys.executable, "-m", "avarc_cli"]
    command = [*avarc, "encode", str(folder / "shards"), "--model", "digits", "--out", str(out)]
    all_units = -(-images // default_chunk_size(images, default_batch_size(16)))
    first = Watch(command, Path(f"{out}.parts"))
    first.until(all_units // 2)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    report(first.samples, all_units, images)
    done = first.units()
    second = Watch(command, Path(f"{out}.parts"))
    second.until(done + 1)
    print(f"killed at {done} of {all_units} units; the next was there {second.samples[-1][0]:.1f} s after the start")
    second.until(10**9)
    report(second.samples, all_units, images)
    total = first.samples[-1][0] + time.monotonic() - second.began
    print(f"exit {second.process.returncode}, {total:.0f} s in all, {out.stat().st_size / 1e6:.0f} MB", flush=True)
    subprocess.run([*avarc, "cache", "verify", str(out)], check=True)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    if len(sys.argv) > 2:
        main(count, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(count, Path(temporary))
