"""Running the scripts of tests in processes of their own, with the packages and helpers of this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
HOLD_LOCK = TESTS / "work" / "scripts" / "hold_lock.py"
SECONDS = 300


def start(script: Path, *args: object, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start a script, with these variables added to the environment; other options are Popen's."""
    variables = _environment() | dict(env or {})
    return subprocess.Popen([sys.executable, str(script), *map(str, args)], env=variables, text=True, **options)


def run(script: Path, *args: object, log: Path) -> None:
    """Run a script to its end. Raises: AssertionError with its output when it fails."""
    with log.open("w") as file:  # not a pipe: processes that outlive it would keep that open
        process = start(script, *args, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            code = process.wait(SECONDS)
        finally:
            process.kill()
    assert code == 0, log.read_text()


def _environment() -> dict[str, str]:
    paths = [str(TESTS), *(path for path in sys.path if path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
