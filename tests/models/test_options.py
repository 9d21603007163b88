"""--kernels and --memory: what they choose, what they refuse, what run.json says."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from avarc_cli import devices, environment
from avarc_cli.cli import main
from avarc_cli.devices import pick_kernels
from avarc_cli.errors import UsageError
from avarc_cli.layers.kernels import use_kernels
from avarc_cli.layers.precision import PRECISIONS, available
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.scoring import batching
from avarc_cli.scoring.batching import auto_tokens, cached_tokens_per_batch
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.zoo.local_files import ASSETS

CPU = torch.device("cpu")


def test_auto_is_torch_on_a_cpu_and_triton_is_refused_there(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert pick_kernels("auto", CPU, "bf16") == pick_kernels("torch", CPU, "bf16") == "torch"
    with pytest.raises(UsageError):
        pick_kernels("triton", CPU, "bf16")
    with pytest.raises(UsageError):
        pick_kernels("cuda", CPU, "bf16")


@pytest.mark.parametrize(("precision", "kernels"), [("bf16", "triton"), ("fp8", "triton"), ("fp32", "torch")])
def test_auto_is_triton_on_a_gpu_in_half_precision(monkeypatch, precision, kernels):
    monkeypatch.setattr(devices, "triton_missing", lambda device: None)
    assert pick_kernels("auto", torch.device("cuda"), precision) == kernels
    monkeypatch.setattr(devices, "triton_missing", lambda device: "the package triton is not installed")
    assert pick_kernels("auto", torch.device("cuda"), precision) == "torch"


@pytest.fixture
def no_triton(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize("name", ["digits", "digits-llamagen", "digits-randar"])
def test_attention_runs_through_flash_attn(flash_attn, no_triton, name):
    spec = ModelSpec(name, precision="bf16")
    torch_model, flash_model = load_model(spec), load_model(replace(spec, kernels="flash"))
    assert flash_model.kernels == flash_model.protocol()["kernels"] == "flash+torch"
    rows, log_prob = torch.zeros(2, dtype=torch.int64), []
    for model in (torch_model.likelihood, flash_model.likelihood):
        tokens_1L = torch.randint(8, (1, model.segment_ends[-1]), generator=torch.Generator().manual_seed(0))
        state, segments = model.begin(tokens_1L, rows, torch.arange(2)), len(model.segment_ends)
        first = model.extend(state, 2, keep_cache_segments=2)
        log_prob.append(torch.cat([first, model.extend(state, segments, keep_cache_segments=0)], dim=1))
    assert flash_attn, "flash-attn was never called"
    assert (log_prob[0] - log_prob[1]).abs().max() < 0.1  # the rounding of bf16


@pytest.mark.parametrize("name", ["digits-titok", "digits-captions"])
def test_models_whose_attention_is_another_refuse_flash_attn(flash_attn, no_triton, name):
    with pytest.raises(UsageError, match="flash-attn is not for this model"):
        load_model(ModelSpec(name, precision="bf16", kernels="flash"), unbound=True)


def test_heads_that_are_too_wide_refuse_flash_attn():
    with pytest.raises(UsageError) as refused:
        use_kernels(torch.nn.Identity(), "flash+torch", head_width=264)
    assert "264 channels" in refused.value.why


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--precision", "fp32"], "attends in float32"),
        (["--precision", "tf32"], "attends in float32"),
        (["--precision", "cascade"], "in which a cascade decides"),
        (["--precision", "auto"], "in which a cascade decides"),
        (["--precision", "bf16", "--plan", "2:3/bf16,5:1/fp32"], "attends in float32"),
    ],
)
def test_flash_attn_is_refused_in_full_precision(flash_attn, tiny_files, capsys, options, why):
    image = str(tiny_files / "img" / "000.png")
    assert main(["classify", image, "--kernels", "flash", *options]) == 2
    assert why in " ".join(capsys.readouterr().err.split())


def test_flash_attn_is_refused_where_it_is_not_installed(monkeypatch, tiny_files, capsys):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    image = str(tiny_files / "img" / "000.png")
    assert main(["classify", image, "--kernels", "flash", "--precision", "bf16"]) == 2
    assert "flash-attn is not installed" in " ".join(capsys.readouterr().err.split())


def test_a_run_records_flash_attn(flash_attn, no_triton, tiny_files, tmp_path):
    image, run = str(tiny_files / "img" / "000.png"), tmp_path / "run"
    assert main(["classify", image, "--kernels", "flash", "--precision", "bf16", "--out", str(run)]) == 0
    asked = json.loads((run / "run.json").read_text())
    assert asked["kernels"] == "flash+torch" and asked["attention"].startswith("flash-attn ")


def test_doctor_says_whether_flash_attn_runs(flash_attn):
    assert "--kernels flash: available" in environment.choices()[-1].why


def test_less_memory_means_smaller_batches_and_too_little_is_refused():
    model = load_model("digits").likelihood
    plan = parse_plan("exhaustive", segments=len(model.segment_ends), candidates=10, samples=1)
    unlimited = auto_tokens(model, plan, CPU, fixed=True)
    base = (512 << 20) + model.resident_bytes
    assert auto_tokens(model, plan, CPU, fixed=True, memory=2**40) == unlimited
    assert auto_tokens(model, plan, CPU, fixed=True, memory=base + (16 << 20)) < unlimited
    assert cached_tokens_per_batch(model, CPU) * model.bytes_per_token(cached=True) == 128 << 20
    assert cached_tokens_per_batch(model, torch.device("cuda")) is None
    large = SimpleNamespace(bytes_per_token=lambda cached: 1 << 20, resident_bytes=8 << 30)
    assert cached_tokens_per_batch(large, CPU) == 512
    with pytest.raises(UsageError) as refused:
        auto_tokens(model, plan, CPU, fixed=True, memory=2**20)
    assert "need" in refused.value.why


@pytest.mark.parametrize("words", [["--precision", "bf16+fp32"], ["--plan", "2:5/bf16,5:1"]], ids=" ".join)
def test_the_memory_that_is_asked_for_is_enough_for_two_precisions(capsys, words):
    command = ["classify", str(ASSETS / "digits" / "test" / "0"), *words, "--memory"]
    assert main([*command, "300MiB", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "300 MiB is too little" in said
    enough = said.split("use --memory ")[1].split()[0]
    assert main([*command, enough, "--dry-run"]) == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_forecast_takes_the_time_of_the_precisions_own_products(precision, capsys, monkeypatch):
    if precision not in available(CPU):
        pytest.skip(f"no {precision} here")
    used = []
    product = batching.linear
    monkeypatch.setattr(batching, "linear", lambda layer, x: used.append(layer) or product(layer, x))
    batching._flops_per_second.cache_clear()
    words = ["classify", str(ASSETS / "digits" / "test" / "0"), "--precision", precision, "--dry-run"]
    assert main(["--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["scoring"]["seconds"] > 0
    multiplied = used[0].multiplied if PRECISIONS[precision].quantized else used[0].weight.dtype
    assert multiplied == PRECISIONS[precision].product


def test_a_forecast_counts_the_weights_of_both_precisions(capsys):
    weights = {}
    for precision in ("bf16", "bf16+fp32"):
        words = ["classify", str(ASSETS / "digits" / "test" / "0"), "--precision", precision, "--dry-run"]
        assert main(["--json", *words]) == 0
        weights[precision] = json.loads(capsys.readouterr().out)["scoring"]["weights"]
    assert weights["bf16+fp32"] == 3 * weights["bf16"]
