"""Without a GPU the kernels of these tests run in Triton's interpreter, which must be chosen before triton is imported.

The choice is withdrawn at once and made again for each test of this folder only: other tests, and the processes that
they start, see a machine without Triton's device, as users do.
"""

import importlib.util
import os

import pytest
import torch

INTERPRETED = importlib.util.find_spec("triton") is not None and not torch.cuda.is_available()

if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"
    from avarc_kernels import (  # noqa: F401
        adaln_triton,
        attention_triton,
        gelu_triton,
        likelihood_triton,
        quantize_triton,
        rows_triton,
    )

    del os.environ["TRITON_INTERPRET"]


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the Triton kernels run: compiled on a GPU, else interpreted on the CPU (slow, float32 only)."""
    pytest.importorskip("triton", reason="triton is not installed (it has no wheels but for Linux)")
    if torch.cuda.is_available():
        return "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return "cpu"
