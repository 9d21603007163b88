"""Benchmarks: counted work, and the baseline that avarc is timed against."""

import pytest
import torch

from avarc_cli.bench.measure import tokens_without_reuse
from avarc_cli.errors import UsageError
from avarc_cli.models.var import reference
from avarc_cli.models.var.benchmark import parse_shape
from avarc_cli.options import parse_bytes
from avarc_cli.scoring.plan import parse_plan

ENDS = (1, 5, 14, 30, 55, 91, 155, 255, 424, 680)


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
def test_an_invalid_shape_is_refused(text):
    with pytest.raises(UsageError):
        parse_shape(text)


def test_shapes_are_the_published_ones():
    c = parse_shape("d16")
    assert (c.depth, c.width, c.heads, c.ends[-1]) == (16, 1024, 16, 680)


@pytest.mark.parametrize(("text", "size"), [("8GiB", 8 * 2**30), ("1.5 GB", 15 * 10**8), ("500MiB", 500 * 2**20)])
def test_memory_is_read_with_its_unit(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["8", "0GiB", "-1GiB", "8gb", ""])
def test_an_invalid_memory_size_is_refused(text):
    with pytest.raises(UsageError):
        parse_bytes(text)
