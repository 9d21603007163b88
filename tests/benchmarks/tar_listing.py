"""CPU time and memory of listing a tar of small samples: one image and one label each.

Results: docs/datasets.md. python tests/benchmarks/tar_listing.py [SAMPLES]
"""

from __future__ import annotations

import io
import multiprocessing
import resource
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from avarc_cli.data import open_images


def write(path: Path, samples: int) -> None:
    with tarfile.open(path, "w") as archive:
        for i in range(samples):
            for name, content in ((f"{i:07d}.cls", b"%d" % (i % 1000)), (f"{i:07d}.jpg", b"x" * 600)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def main(samples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar"
        writer = multiprocessing.Process(target=write, args=(path, samples))  # its memory must not be counted
        writer.start()
        writer.join()
        started = time.process_time()
        images = open_images([path])
        seconds = time.process_time() - started
    print(
        f"{len(images):,} samples: {seconds:.1f} s, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
