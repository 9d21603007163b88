"""Claim chunks START to STOP of a path, print "held", and release them when standard input ends.

Usage: hold_chunks PATH START STOP. If another process has claimed one of them, the error is printed instead.
"""

import sys
from pathlib import Path

from avarc_cli.errors import AvarcError
from avarc_cli.work.locks import chunk_lock


def main(path: Path, chunks: range) -> None:
    try:
        with chunk_lock(path, wait=True) as lock:
            lock.claim(chunks)
            lock.release_exclusive()
            print("held", flush=True)
            sys.stdin.read()
    except AvarcError as error:
        print(error.what, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])))
