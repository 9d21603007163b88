"""`python -m avarc_kernels.bench`: which shapes it measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from avarc_kernels.bench.__main__ import main
from avarc_kernels.bench.models import ON_A_GPU, QUICK, SMALL

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="has other shapes on a GPU, and takes minutes")
KERNELS = Path(__file__).parents[2] / "kernels"


def bench(*options):
    env = os.environ | {"PYTHONPATH": str(KERNELS), "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-m", "avarc_kernels.bench", *options]
    return subprocess.run(words, capture_output=True, text=True, env=env, check=False)


def test_each_family_of_models_has_a_shape_of_its_own():
    done = bench("--op", "causal_attention", "--model", "rar", "--model", "randar", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == found["wrong"] == 0
    shapes = [f["shape"] for f in found["figures"] if f["name"] == "torch"]
    assert shapes == [
        "rar image P=1 H=2 D=48 T=65 S=65",
        "rar last segment P=1 H=2 D=48 T=8 S=65",
        "randar image P=1 H=2 D=64 T=128 S=128",
        "randar last segment P=1 H=2 D=64 T=16 S=128",
    ]


def test_a_model_without_the_operation_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--op", "swiglu", "--model", "rar"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "no such model" in capsys.readouterr().err


@pytest.mark.parametrize("models", [ON_A_GPU, SMALL])
def test_every_model_divides_among_its_heads(models):
    assert all(model.width == model.heads * model.head_width for model in models)
    assert {op for model in models for op in model.operations} == {op for model in ON_A_GPU for op in model.operations}
    assert set(QUICK) <= {model.name for model in ON_A_GPU}
