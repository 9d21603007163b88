"""`avarc bench`: the report is arithmetic on measured times; no assertion depends on how long anything took."""

import json

import pytest
from PIL import Image

from avarc_cli.cli import main


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
