"""What models compute on a GPU, compared with the CPU. `make test-gpu` runs it, on a machine that has one."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import avarc_cli
from avarc_cli import load_classifier
from avarc_cli.bench.graphs import GraphResult, measure_graphs
from avarc_cli.cli import main
from avarc_cli.layers.precision import available
from avarc_cli.model_spec import ModelSpec
from avarc_cli.models.var.benchmark import random_workload
from avarc_cli.settings import flash_refuses
from avarc_kernels import flash_missing, triton_missing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test-gpu"),
]
CUDA = torch.device("cuda")
DIGITS = Path(avarc_cli.__file__).parent / "assets" / "digits" / "test"
IMAGES = [str(path) for path in sorted(DIGITS.glob("*/*.png"))[::18]]
MODELS = ("digits", "digits-llamagen", "digits-randar", "digits-titok")
NATS = {"fp32": 0.002, "tf32": 0.2, "fp16": 0.3, "bf16": 2.0, "int8": 5.0, "fp8": 12.0}
"""Largest error of an image's log-likelihood, per precision."""


@cache
def log_likelihood(model, device, precision="fp32", kernels="torch"):
    spec = ModelSpec(model, device=device, precision=precision, kernels=kernels)
    return load_classifier(spec).log_likelihood(IMAGES).values


@pytest.mark.parametrize("kernels", ["torch", "triton", "flash"])
@pytest.mark.parametrize("precision", NATS)
@pytest.mark.parametrize("model", MODELS)
def test_log_likelihoods_are_those_of_the_cpu(model, precision, kernels):
    why = {"triton": triton_missing, "flash": flash_missing}.get(kernels, lambda device: None)(CUDA)
    if precision not in available(CUDA) or why or (kernels == "flash" and flash_refuses(precision)):
        pytest.skip(why or "not on this GPU")
    if kernels == "flash" and model == "digits-titok":
        pytest.skip("attends in both directions")
    expected = log_likelihood(model, "cpu")
    actual = log_likelihood(model, "cuda", precision, kernels)
    assert np.abs(actual - expected).max() < NATS[precision]
    assert (actual.argmax(1) == expected.argmax(1)).mean() >= 0.95


@pytest.mark.parametrize(("kernels", "chosen"), [("torch", "torch"), ("triton", "triton"), ("auto", "triton")])
def test_a_cascade_predicts_what_fp32_predicts_on_the_cpu(tmp_path, kernels, chosen):
    if chosen == "triton" and (why := triton_missing(CUDA)):
        pytest.skip(why)
    for device, precision in (("cpu", "fp32"), ("cuda", "cascade")):
        how = ["--device", device, "--precision", precision, "--kernels", kernels if device == "cuda" else "torch"]
        assert main(["classify", str(DIGITS), "--plan", "auto", *how, "--out", str(tmp_path / device)]) == 0
    cpu, cuda = (
        [json.loads(line) for line in (tmp_path / device / "predictions.jsonl").read_text().splitlines()]
        for device in ("cpu", "cuda")
    )
    assert [image["prediction"] for image in cuda] == [image["prediction"] for image in cpu]
    asked = json.loads((tmp_path / "cuda" / "run.json").read_text())
    assert asked["kernels"] == chosen and asked["device_name"] == torch.cuda.get_device_name()
    assert asked["other_kernels"] == {"fp32": "torch" if kernels == "auto" else chosen}


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_graphs_score_what_launches_do(kernels):
    if kernels == "triton" and (why := triton_missing(CUDA)):
        pytest.skip(why)
    workload = random_workload("2:64:2", (1, 2, 3, 4), CUDA)
    what = GraphResult("fp32", kernels, 0, 0)
    for graph in measure_graphs(workload.model("fp32", kernels), workload.tokens_L, (2, 4), what):
        assert not graph.failed and graph.error_max < 1e-4


@pytest.mark.parametrize("more", [[], ["--precision", "bf16"], ["--precision", "fp16"], ["--compile"]])
@pytest.mark.parametrize("generator", ["var", "llamagen", "randar", "rar", "maskgit"])
def test_trainings_run(tmp_path, generator, more):
    tokenizer = {"var": "digits-vqvae", "maskgit": "digits-titok-vq"}.get(generator, "digits-vq")
    shape = ["--depth", "2", "--width", "64", "--steps", "4", "--batch-size", "16", "--augment", "none"]
    words = ["train", generator, str(DIGITS), "--tokenizer", tokenizer, "--device", "cuda", *shape, *more]
    assert main([*words, "--out", str(tmp_path / "out.safetensors")]) == 0
