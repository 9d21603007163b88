"""Backends, devices and dtypes for the tests of the kernels.

Without a GPU the Triton kernels run in Triton's interpreter. TRITON_INTERPRET must be set when triton and the kernel
modules are imported, so they are imported here. Then it is unset, and set again only for tests of this folder that need
it: all others, and the processes they start, see a machine that cannot run Triton, as users do.
"""

import importlib.util
import os
import pkgutil
from typing import NamedTuple

import pytest
import torch

import avarc_kernels

HAS_GPU = torch.cuda.is_available()
HAS_TRITON = importlib.util.find_spec("triton") is not None
NEEDS_TRITON = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed (it has wheels for Linux only)")
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="the interpreter has float32 only")]

if HAS_TRITON and not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
    for module in pkgutil.iter_modules(avarc_kernels.__path__, "avarc_kernels."):
        if module.name.endswith("_triton"):
            importlib.import_module(module.name)
    del os.environ["TRITON_INTERPRET"]


class Target(NamedTuple):
    """What a test runs an operation on."""

    backend: str
    device: str
    dtype: torch.dtype


TORCH = pytest.param(("torch", torch.float32), id="torch")
TRITON = pytest.param(("triton", torch.float32), id="triton", marks=NEEDS_TRITON)
TRITON_HALF = [
    pytest.param(("triton", torch.bfloat16), id="triton-bfloat16", marks=NEEDS_GPU),
    pytest.param(("triton", torch.float16), id="triton-float16", marks=NEEDS_GPU),
]


@pytest.fixture(params=[TORCH, TRITON, *TRITON_HALF])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    """Each backend and dtype: the torch backend on the CPU, the Triton kernels on a GPU where there is one."""
    return _target(request.param, monkeypatch)


@pytest.fixture(params=[TORCH, TRITON])
def float32_target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    """Each backend, for tests in which the dtype does not matter."""
    return _target(request.param, monkeypatch)


@pytest.fixture(params=[TRITON, *TRITON_HALF])
def triton_target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    """The Triton backend in each dtype."""
    return _target(request.param, monkeypatch)


@pytest.fixture(params=[TRITON])
def triton_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of the Triton backend, for tests in which the dtype does not matter."""
    return _target(request.param, monkeypatch).device


def _target(choice: tuple[str, torch.dtype], monkeypatch: pytest.MonkeyPatch) -> Target:
    backend, dtype = choice
    if backend == "triton" and not HAS_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return Target(backend, "cuda" if backend == "triton" and HAS_GPU else "cpu", dtype)
