"""Hold a lock, print "held", and release it when standard input ends.

Usage: hold_lock file PATH, or hold_lock run FOLDER.
"""

import sys
from pathlib import Path

from avarc_cli.results.folder import RunFolder
from avarc_cli.work.locks import only_writer


def main(kind: str, path: str) -> None:
    with only_writer(Path(path)) if kind == "file" else RunFolder(Path(path)).lock():
        print("held", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
