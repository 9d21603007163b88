"""CPU time and memory of listing a tar of small samples: one image and one label each.

Results: docs/datasets.md. python tests/benchmarks/tar_listing.py [SAMPLES] [--json]
"""

from __future__ import annotations

import io
import multiprocessing
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from figure_tables import Table, show, wants_json

from avarc_cli.data import open_images


def write(path: Path, samples: int) -> None:
    with tarfile.open(path, "w") as archive:
        for i in range(samples):
            for name, content in ((f"{i:07d}.cls", b"%d" % (i % 1000)), (f"{i:07d}.jpg", b"x" * 600)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def main(samples: int, *, as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar"
        writer = multiprocessing.Process(target=write, args=(path, samples))  # its memory must not be counted
        writer.start()
        writer.join()
        started = time.process_time()
        images = open_images([path])
        seconds = time.process_time() - started
    # ru_maxrss of Linux is at least what the process that started this one had.
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) >> 10
    columns = [("samples in one tar", ",d"), ("CPU seconds to list them", ".1f"), ("peak of the process, MiB", "")]
    show(Table(columns, [[len(images), seconds, peak]]), as_json=as_json)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, as_json=as_json)
