"""C code of this package, which a compiler builds for the processor at hand when a process first uses it."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

COMPILERS = ("gcc", "cc", "clang")  # gcc first: PyTorch's own threads are of its OpenMP, too
FLAGS: tuple[str, ...] = ("-march=native", "-fopenmp", "-shared", "-fPIC")


def build(source: Path, *flags: str) -> ctypes.CDLL | str:
    """The functions of a C file for x86 with AVX2, or why there are none on this machine.

    Args:
        flags: of the compiler, beside `FLAGS`, which count more.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"its code is for Linux on x86-64, and this is {sys.platform} on {platform.machine()}"
    if not torch.cpu._is_avx2_supported():
        return "this processor has no AVX2"
    named = compiler()
    if not named:
        return f"it needs a C compiler, and there is no {', no '.join(COMPILERS)} and no CC"
    try:
        with tempfile.TemporaryDirectory(prefix="avarc-", ignore_cleanup_errors=True) as folder:
            file = Path(folder, source.stem + ".so")
            if why := _compile(named, [*flags, *FLAGS, str(source), "-o", str(file)]):
                return f"the C compiler '{named}' {why}"
            return ctypes.CDLL(str(file))  # stays loaded when the file is gone
    except OSError as error:
        return f"what the C compiler makes cannot be kept or loaded: {error} (TMPDIR can name another folder)"


def compiler() -> str:
    """The command that compiles; "" where there is none."""
    return os.environ.get("CC") or next(filter(shutil.which, COMPILERS), "")


def _compile(named: str, arguments: list[str]) -> str | None:
    """Why it failed; None where it did not."""
    try:
        command, env = [*shlex.split(named), *arguments], os.environ | {"LC_ALL": "C"}
        ended = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=env)
    except (OSError, ValueError) as error:
        return f"cannot be run: {error}"
    if ended.returncode == 0:
        return None
    lines = ended.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
    causes = (line for line in lines if "error" in line.lower() or "cannot find" in line)
    return f"failed: {next(causes, lines[-1])}"
