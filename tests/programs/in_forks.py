"""Run other programs of this folder, each in a fork with a folder of its own, so that torch is imported once.

Usage: in_forks FOLDER PROGRAM..., which calls each PROGRAM's `main` with FOLDER/PROGRAM, and prints its name and how it
ended, as `in_child`. What it prints goes to FOLDER/PROGRAM.log.
"""

from __future__ import annotations

import os
import sys
import traceback
from functools import partial
from importlib import import_module
from pathlib import Path

from killing import in_child


def run(program: str, folder: Path) -> None:
    with folder.with_suffix(".log").open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        try:
            import_module(f"programs.{program}").main(folder)
        except BaseException:
            traceback.print_exc()
            raise


if __name__ == "__main__":
    for program in sys.argv[2:]:
        import_module(f"programs.{program}")
    for program in sys.argv[2:]:
        folder = Path(sys.argv[1]) / program
        folder.mkdir()
        print(program, in_child(partial(run, program, folder)), flush=True)
