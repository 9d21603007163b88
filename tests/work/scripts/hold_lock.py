"""Holds chunks START to STOP of a path's lock, or all with the exclusive lock, until its input ends.

Usage: hold_lock.py PATH [START STOP]
"""

from __future__ import annotations

import sys
from pathlib import Path

from avarc_cli.errors import AvarcError
from avarc_cli.work.locks import ALL_CHUNKS, chunk_lock

path, numbers = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
try:
    with chunk_lock(path, wait=bool(numbers)) as lock:
        lock.claim(range(*numbers) if numbers else ALL_CHUNKS)
        if numbers:
            lock.release_exclusive()
        print("held", flush=True)
        sys.stdin.read()
except AvarcError as error:
    print(error.what, flush=True)
