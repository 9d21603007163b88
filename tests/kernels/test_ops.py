"""Each op against its definition in float64: at most twice the float32 definition's own distance, plus 1e-6."""

import pytest
import torch

from avarc_kernels import likelihood, linear_log_prob, nearest_code, quantize, segment_attention


def bounded(ours, definition, *inputs):
    """Whether `ours` is as near to the definition in float64 as the definition in float32 is, within a factor of 2."""
    truth = definition(*(t.double() if t.is_floating_point() else t for t in inputs))
    yardstick = (definition(*inputs) - truth).abs().max()
    return (ours - truth).abs().max() <= 2 * yardstick + 1e-6


def log_prob_definition(hidden, weight, bias, target):
    return (hidden @ weight.T + bias).log_softmax(-1).gather(-1, target[:, None])[:, 0]


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 33])  # empty, one, below, at and above a chunk, several with a rest
@pytest.mark.parametrize("offset", [0.0, 1000.0])  # a large common offset must cancel
def test_linear_log_prob_is_its_definition(monkeypatch, rows, offset):
    monkeypatch.setattr(likelihood, "ROWS_IN_FLIGHT", 8)
    torch.manual_seed(0)
    hidden, weight, bias = 3 * torch.randn(rows, 16), torch.randn(50, 16), torch.randn(50) + offset
    target = torch.randint(50, (rows,))
    ours = linear_log_prob(hidden, weight, bias, target)
    assert ours.shape == (rows,) and ours.dtype == torch.float32 and bool((ours <= 0).all())
    assert rows == 0 or bounded(ours, log_prob_definition, hidden, weight, bias, target)


def test_probabilities_of_all_tokens_sum_to_one():
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 16).expand(50, -1), torch.randn(50, 16)
    assert linear_log_prob(hidden, weight, None, torch.arange(50)).exp().sum() == pytest.approx(1, abs=1e-5)


def test_a_certain_token_has_a_log_probability_of_zero_not_above():
    hidden, weight = torch.tensor([[100.0]]), torch.tensor([[1.0], [-1.0]])
    assert linear_log_prob(hidden, weight, None, torch.tensor([0])).tolist() == [0.0]


def test_linear_log_prob_refuses_shapes_that_disagree():
    with pytest.raises(ValueError, match="hidden"):
        linear_log_prob(torch.randn(3, 4), torch.randn(5, 6), None, torch.zeros(3, dtype=torch.long))


def attention_definition(q, k, v, prefix, ends, scale):
    segment = torch.tensor([sum(e <= t for e in ends) for t in range(q.shape[2])])
    seen = torch.cat([torch.full((prefix,), -1), segment])[None, :] <= segment[:, None]
    return ((q @ k.mT) * scale).masked_fill(~seen, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("ends", [[1], [9], [1, 5, 9], [4, 5, 9]])
def test_segment_attention_is_masked_attention(prefix, ends):
    torch.manual_seed(0)
    new = ends[-1]
    q, k, v = (4 * torch.randn(2, 3, n, 8) for n in (new, prefix + new, prefix + new))
    ours = segment_attention(q, k, v, ends, 0.5)
    assert bounded(ours, lambda *qkv: attention_definition(*qkv, prefix, ends, 0.5), q, k, v)


@pytest.mark.parametrize("ends", [[], [3], [5, 4], [4, 4, 6], [7]])
def test_segment_attention_refuses_ends_that_do_not_cover_the_new_positions(ends):
    q = torch.randn(1, 1, 6, 4)
    with pytest.raises(ValueError, match="segment ends"):
        segment_attention(q, q, q, ends, 1.0)


@pytest.mark.parametrize("rows", [0, 1, 8, 17])
def test_nearest_code_is_the_argmin_of_distances(monkeypatch, rows):
    monkeypatch.setattr(quantize, "ROWS_IN_FLIGHT", 8)
    torch.manual_seed(0)
    z, codebook = torch.randn(rows, 4), torch.randn(30, 4)
    expected = (z.double()[:, None] - codebook.double()).square().sum(-1)
    assert nearest_code(z, codebook).tolist() == (expected.argmin(1).tolist() if rows else [])


def test_nearest_code_takes_the_first_of_equal_entries():
    codebook = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert nearest_code(torch.tensor([[1.0, 1.0]]), codebook).tolist() == [1]
    with pytest.raises(ValueError, match="channels"):
        nearest_code(torch.randn(2, 3), codebook)
