"""avarc bench: what it reports is arithmetic over what it timed; nothing here depends on how long that took."""

import json

import pytest
import torch
from PIL import Image

from avarc_cli.bench.measure import tokens_without_reuse
from avarc_cli.cli import main
from avarc_cli.errors import UsageError
from avarc_cli.models.var import reference
from avarc_cli.models.var.benchmark import parse_shape
from avarc_cli.scoring.batching import parse_bytes
from avarc_cli.scoring.plan import parse_plan

ENDS = (1, 5, 14, 30, 55, 91, 155, 255, 424, 680)


def test_a_quick_bench_reports_every_precision_and_draws_it(tmp_path, capsys):
    assert main(["bench", "--quick", "--rounds", "1", "--json", "--picture", str(tmp_path / "b.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    results = found["report"]["results"]
    assert [r["precision"] for r in results if r["kernels"] == "torch"] == ["fp32", "bf16", "fp16", "int8"]
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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "digits", "--shape", "d16", "--scales", "1,2"], "no use for --shape, --scales with --model"),
        (["--quick", "--shape", "d16", "--plan", "paper"], "no use for --shape, --plan with --quick"),
        (["--tokenizer", "digits-vqvae"], "no use for --tokenizer without --model"),
    ],
)
def test_options_that_would_change_nothing_are_refused(capsys, options, says):
    assert main(["bench", *options]) == 2
    assert says in capsys.readouterr().err


def test_the_papers_plan_counts_what_the_paper_counts():
    plan = parse_plan("paper", segments=10, candidates=100, samples=3)
    assert tokens_without_reuse(plan, 100, ENDS) == 100 * 91 + 10 * 680 + 3 * 3 * 680
    assert plan.tokens(100, ENDS) == 100 * 91 + 10 * 589 + 3 * 2 * 680


@torch.inference_mode()
def test_the_baseline_scores_a_prefix_as_it_scores_the_whole(tiny):
    weights, tokens = tiny.tensors("var"), tiny.tokens()[0]
    teacher = tiny.vqvae().quantize.teacher_input(tiny.tokens()[:1])
    classes = torch.arange(2)
    whole = reference.token_log_probs(weights, tokens, teacher, classes)
    first, end = tiny.var().config.ends[0], tiny.var().config.ends[1]
    part = reference.token_log_probs(weights, tokens[:end], teacher[:, : end - first], classes)
    assert torch.allclose(part, whole[:, :end], atol=1e-5)


@pytest.mark.parametrize("text", ["d", "16", "d16:2", "1:2", "3:64:5", "x", "0:64:1"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(UsageError):
        parse_shape(text)


def test_shapes_are_the_published_ones():
    c = parse_shape("d16")
    assert (c.depth, c.width, c.heads, c.ends[-1]) == (16, 1024, 16, 680)


@pytest.mark.parametrize(("text", "size"), [("8GiB", 8 * 2**30), ("1.5 GB", 15 * 10**8), ("500MiB", 500 * 2**20)])
def test_memory_is_read_with_its_unit(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["8", "0GiB", "-1GiB", "8gb", ""])
def test_memory_without_sense_is_refused(text):
    with pytest.raises(UsageError):
        parse_bytes(text)
