"""Whole models with the Triton kernels, which a GPU uses in half precision: what they score with PyTorch's."""

import numpy as np
import pytest
import torch

from avarc_cli.bench.workload import random_workload
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.models.maskgen import benchmark as maskgen
from avarc_cli.zoo.local_files import ASSETS

CAPTIONS = ASSETS / "digits-captions" / "captions.json"
INCLUDED = {
    "digits": {},
    "digits-llamagen": {},
    "digits-randar": {},
    "digits-titok": {},
    "digits-captions": {"captions": CAPTIONS},
}
SHAPES = {"rar-2:48:2": (4,), "maskgen-1:48:2:4": None}


def scores(likelihood, device):
    """Token log-probabilities of the first segment under two classes, and of the second after it."""
    length = likelihood.segment_ends[-1]
    tokens_BL = torch.from_numpy(np.random.default_rng(0).integers(64, size=(1, length))).to(device)
    state = likelihood.begin(tokens_BL, torch.zeros(2, dtype=torch.int64), torch.tensor([1, 3]))
    return torch.cat([likelihood.extend(state, stop, keep_cache_segments=stop) for stop in (1, 2)], dim=1)


@pytest.mark.parametrize("name", INCLUDED)
def test_an_included_model_scores_alike(triton_device, name):
    ours, pytorchs = (
        load_model(ModelSpec(name, kernels=kernels, device=triton_device, **INCLUDED[name])).likelihood
        for kernels in ("triton", "torch")
    )
    assert torch.allclose(scores(ours, triton_device), scores(pytorchs, triton_device), atol=1e-4)


@pytest.mark.parametrize(("shape", "scales"), SHAPES.items())
def test_a_model_of_random_weights_scores_alike(triton_device, shape, scales, monkeypatch):
    if triton_device == "cpu":  # where the interpreter needs its time for every row
        monkeypatch.setattr(maskgen, "TEXT_POSITIONS", 8)
    workload = random_workload(shape, scales, torch.device(triton_device))
    ours, pytorchs = (workload.model("fp32", kernels) for kernels in ("triton", "torch"))
    assert torch.allclose(scores(ours, triton_device), scores(pytorchs, triton_device), atol=1e-4)
