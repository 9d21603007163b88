"""Programs that tests run in other processes, one per file: `run` waits for one, `start` does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def start(
    program: str, *arguments: object, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start programs/<program>.py, which may import the helpers of tests/; options are Popen's."""
    variables = dict(os.environ if env is None else env)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), variables.get("PYTHONPATH"))))
    command = [sys.executable, "-m", f"programs.{program}", *map(str, arguments)]
    return subprocess.Popen(command, env=variables, **options)


def run(program: str, *arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run programs/<program>.py to its end, without standard input."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = start(program, *arguments, env=env, **pipes)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
