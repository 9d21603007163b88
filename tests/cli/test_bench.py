"""`avarc bench`: the report is arithmetic on measured times; no assertion depends on how long anything took."""

import json

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from avarc_cli.bench import peaks
from avarc_cli.bench.graphs import GraphResult, measure_graphs
from avarc_cli.bench.workload import random_workload
from avarc_cli.cli import main
from avarc_cli.layers import linears
from avarc_cli.layers.precision import available
from avarc_cli.models.var import network

CPU = torch.device("cpu")


def test_a_quick_bench_reports_every_precision_and_what_it_skips_and_draws_it(tmp_path, capsys):
    options = [
        "--quick",
        "--rounds",
        "1",
        "--graphs",
        "--device",
        "cpu",
        "--json",
        "--picture",
        str(tmp_path / "b.png"),
    ]
    assert main(["bench", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    report = found["report"]
    assert report["graphs"] == [] and report["graphs_skipped"] == "CUDA graphs need a CUDA device, not cpu"
    results = found["report"]["results"]
    assert [r["precision"] for r in results if r["kernels"] == "torch"] == list(available(CPU))
    baseline, ours = results[0], next(r for r in results[1:] if r["precision"] == "fp32")
    assert baseline["name"] == "plain PyTorch" and baseline["speedup"] == 1 and baseline["error_max"] == 0
    assert ours["error_max"] < 1e-4, "the baseline and avarc do not compute the same thing"
    assert all(0 < r["error_max"] < 0.5 for r in results[1:])
    assert ours["tokens_per_second"] == pytest.approx(30 * ours["pairs_per_second"])
    assert all(0 < sum(share for _, share in r["ops"]) <= 1.0001 for r in results)
    assert Image.open(tmp_path / "b.png").size[0] > 100


def test_a_model_with_fewer_scales_than_the_papers_is_counted_exhaustively(capsys):
    options = ["--model", "digits", "--rounds", "1", "--pairs", "1", "--precision", "fp32", "--kernels", "torch"]
    assert main(["bench", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"]["plan"] == "5:1" and found["plan_factor"] == 1


def test_a_replayed_pass_scores_what_a_launched_one_does():
    workload = random_workload("llamagen-2:64:2", (4,), torch.device("cpu"))
    model, what, outs = workload.model("fp32", "torch"), GraphResult("fp32", "torch", 0, 0), []

    def capture(run):  # as a graph, runs the pass once and gives that result again and again
        out = run()
        outs.append(out.shape)
        return lambda: out

    results = measure_graphs(model, workload.tokens_L, (2, 4), what, capture)
    assert outs == [(pairs, 4 * rows) for rows in (2, 4) for pairs in (1, 2, 4)]
    assert [(g.pairs, g.segments) for g in results] == [(p, s) for s in (2, 4) for p in (1, 2, 4)]
    assert all(g.error_max == 0 and g.speedup == g.eager_seconds / g.replay_seconds for g in results)


def test_a_pass_that_cannot_be_recorded_says_why():
    workload = random_workload("llamagen-2:64:2", (4,), torch.device("cpu"))

    def capture(run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    results = measure_graphs(
        workload.model("fp32", "torch"), workload.tokens_L, (4,), GraphResult("a", "b", 0, 0), capture
    )
    assert {g.failed for g in results} == {"operation not permitted when stream is capturing"}


def test_flash_attn_is_one_more_way_in_half_precision(flash_attn, monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    options = ["--quick", "--rounds", "1", "--precision", "fp32,bf16", "--kernels", "torch,flash", "--json"]
    assert main(["bench", *options]) == 0
    results = json.loads(capsys.readouterr().out)["report"]["results"]
    ways = [(r["precision"], r["kernels"]) for r in results[1:]]
    assert ways == [("fp32", "torch"), ("bf16", "torch"), ("bf16", "flash+torch")]
    assert main(["bench", "--quick", "--precision", "fp32", "--kernels", "flash"]) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "digits", "--shape", "d16", "--scales", "1,2"], "no use for --shape, --scales with --model"),
        (["--quick", "--shape", "d16", "--plan", "paper"], "no use for --shape, --plan with --quick"),
        (["--tokenizer", "digits-vqvae"], "no use for --tokenizer without --model"),
        (["--roofline", "--plan", "paper"], "no use for --plan with --roofline"),
    ],
)
def test_options_that_would_change_nothing_are_refused(capsys, options, says):
    assert main(["bench", *options]) == 2
    assert says in capsys.readouterr().err


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch):
    """Peaks that take no time to measure."""
    monkeypatch.setattr(peaks, "ROWS", 64)
    monkeypatch.setattr(peaks, "COPIED", (2**12,))


def roofline(capsys, *options):
    """The jobs of every precision."""
    assert main(["bench", "--roofline", "--rounds", "1", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["roofline"]


def test_a_roofline_divides_the_time_of_small_and_large_jobs(capsys):
    before = F.linear, linears.linear, network.linear
    found = roofline(capsys, "--quick", "--pairs", "2")
    assert (F.linear, linears.linear, network.linear) == before, "an operation is still timed"
    assert [r["precision"] for r in found["results"]] == list(available(CPU))
    integers = {name for name in available(CPU) if name.startswith("int")}
    assert set(found["peaks"]["operations"]) == {"float32", "bfloat16", "float16"} | integers
    for result in found["results"]:
        assert [job["pairs"] for job in result["jobs"]] == [1, 2]
        for job in result["jobs"]:
            parts = {part["name"]: part for part in job["parts"]}
            assert list(parts) == ["products", "attention", "norms", "activation", "head", "host work"]
            assert sum(part["seconds"] for part in parts.values()) == pytest.approx(job["seconds"])
            fused = {"activation"} if result["precision"] == "bf16" else set()  # a part of the products
            assert all(part["seconds"] > 0 for name, part in parts.items() if name not in fused)
            assert parts["host work"]["at_peak"] == 0 < parts["norms"]["bytes"]


def test_a_roofline_counts_the_operations_of_the_model(capsys):
    """Of VAR 2:64:2 with scales of 1, 4, 9 and 16 tokens: 30 tokens, heads of 4096 codes, two pairs."""
    (result,) = roofline(capsys, "--quick", "--pairs", "2", "--precision", "fp32")["results"]
    counted = {part["name"]: part["operations"] for part in result["jobs"][-1]["parts"]}
    seen = 1 * 1 + 4 * 5 + 9 * 14 + 16 * 30
    embedding = 2 * 29 * 32 * 64  # of the image's tokens, once: they are the same for all classes
    assert counted["products"] == 2 * 2 * (2 * 12 * 64 * 64 * 30) + embedding
    assert counted["attention"] == 2 * 2 * (4 * 64 * seen)
    assert counted["head"] == 2 * (2 * 64 * 4096 * 30)


@pytest.mark.parametrize("shape", ["llamagen-2:64:2", "randar-2:64:2", "rar-2:64:2", "maskgit-2:64:2:16"])
def test_every_family_has_its_parts(capsys, shape):
    scales = [] if shape.startswith("maskgit") else ["--scales", "4"]  # whose tokens have no grid
    found = roofline(capsys, "--shape", shape, *scales, "--pairs", "1", "--precision", "fp32")
    parts = {part["name"]: part for part in found["results"][0]["jobs"][0]["parts"]}
    assert all(parts[name]["operations"] > 0 for name in ("products", "attention", "head"))
    assert all(parts[name]["bytes"] > 0 for name in ("norms", "activation"))


def test_a_roofline_fits_80_columns(capsys):
    assert main(["bench", "--roofline", "--quick", "--rounds", "1", "--precision", "fp32"]) == 0
    out = capsys.readouterr().out
    assert "left to gain" in out and max(map(len, out.splitlines())) <= 80
