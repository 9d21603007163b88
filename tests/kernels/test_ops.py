"""Each op against its definition in float64: at most twice the float32 definition's own distance, plus 1e-6."""

import importlib
import math
import sys
import types

import pytest
import torch

from avarc_kernels import (
    adaln,
    block_causal_attention,
    gated_residual_adaln,
    linear_gelu,
    linear_log_prob,
    nearest_code,
    quantize_rows,
)
from avarc_kernels.dispatch import dot_precision


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
    monkeypatch.setattr(importlib.import_module("avarc_kernels.linear_log_prob"), "ROWS_IN_FLIGHT", 8)
    torch.manual_seed(0)
    hidden, weight, bias = 3 * torch.randn(rows, 16), torch.randn(50, 16), torch.randn(50) + offset
    target = torch.randint(50, (rows,))
    ours = linear_log_prob(hidden, weight, bias, target)
    assert ours.shape == (rows,) and ours.dtype == torch.float32 and bool((ours <= 0).all())
    assert rows == 0 or bounded(ours, log_prob_definition, hidden, weight, bias, target)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU rounds the logits of half-precision numbers")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_numbers_are_float32_on_cuda(dtype):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(40, 64, device="cuda") * 4).to(dtype), torch.randn(96, 64, device="cuda").to(dtype)
    bias, target = torch.randn(96, device="cuda").to(dtype), torch.randint(96, (40,), device="cuda")
    ours = linear_log_prob(hidden, weight, bias, target)
    truth = log_prob_definition(hidden.double(), weight.double(), bias.double(), target)
    assert float((ours.double() - truth).abs().max()) < 1e-4


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


def unit(x):
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("ends", [[1], [9], [1, 5, 9], [4, 5, 9]])
def test_block_causal_attention_is_masked_attention(prefix, ends, with_norm):
    torch.manual_seed(0)
    new, gain = ends[-1], torch.tensor([1.0, 10.0, 100.0])
    q, k, v = (4 * torch.randn(2, 3, n, 8) for n in (new, prefix + new, prefix + new))
    q[0, 0, 0] = 0  # of no length
    ours = block_causal_attention(q, k, v, ends, scale=0.5, gain_H=gain if with_norm else None)

    def definition(q, k, v, gain):
        if with_norm:
            q, k = unit(q) * gain[:, None, None], unit(k)
        return attention_definition(q, k, v, prefix, ends, 0.5)

    assert bounded(ours, definition, q, k, v, gain)


@pytest.mark.parametrize("ends", [[], [3], [5, 4], [4, 4, 6], [7], [0, 6], [-1, 6]])
def test_attention_refuses_ends_that_do_not_cover_the_new_positions(ends):
    q = torch.randn(1, 1, 6, 4)
    with pytest.raises(ValueError, match="segment ends"):
        block_causal_attention(q, q, q, ends, scale=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.randn(1, 2, 6, 5)}, "keys"),
        ({"v": torch.randn(1, 2, 7, 4)}, "values"),
        ({"v": torch.randn(1, 2, 6, 4).double()}, "float64"),
        ({"scale": 0.0}, "not positive"),
        ({"gain_H": torch.ones(3)}, "gains"),
        ({"backend": "cuda"}, "none of torch, flash, triton"),
    ],
)
def test_attention_refuses_what_does_not_fit(change, message):
    q = torch.randn(1, 2, 6, 4)
    args = {"q": q, "k": q, "v": q, "scale": 1.0} | change
    with pytest.raises(ValueError, match=message):
        block_causal_attention(args.pop("q"), args.pop("k"), args.pop("v"), [6], **args)


def test_flash_attention_gets_its_own_layout_and_is_named_when_missing(monkeypatch):
    q, k, v = torch.randn(3, 2, 3, 9, 8)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ValueError, match="flash_attn"):
        block_causal_attention(q, k, v, [4, 9], scale=0.5, backend="flash")

    def flash_attn_func(q_PTHD, k_PSHD, v_PSHD, softmax_scale):
        return (
            ((q_PTHD.transpose(1, 2) @ k_PSHD.permute(0, 2, 3, 1)) * softmax_scale)
            .softmax(-1)
            .matmul(v_PSHD.transpose(1, 2))
            .transpose(1, 2)
        )

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=flash_attn_func))
    ours = block_causal_attention(q, k, v, [4, 9], scale=0.5, backend="flash")
    torch.testing.assert_close(ours, block_causal_attention(q, k, v, [4, 9], scale=0.5))


@pytest.mark.parametrize("rows", [None, [1, 1, 0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adaln_and_the_gated_residual_before_it(rows, dtype):
    torch.manual_seed(0)
    x, y = 3 * torch.randn(3, 4, 10) + 50, torch.randn(3, 4, 10).to(dtype)
    x[1] = x[1] * 1e-4  # a variance near eps
    table = torch.randn(3, 6, 10)
    gate, scale, shift = table[:, 0], table[:, 2], table[:, 4]
    row = None if rows is None else torch.tensor(rows)
    of = slice(None) if row is None else row

    def definition(x, scale, shift):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale[of][:, None])
            + shift[of][:, None]
        )

    assert bounded(adaln(x, scale, shift, row), definition, x, scale, shift)
    stream, out = gated_residual_adaln(x, y, gate, scale, shift, row, dtype=dtype)
    assert bounded(stream, lambda x, y, gate: x + gate[of][:, None] * y, x, y.float(), gate)
    assert out.dtype == dtype and torch.equal(out, adaln(stream, scale, shift, row).to(dtype))


def test_adaln_refuses_shapes_that_disagree():
    x, table = torch.randn(2, 3, 4), torch.randn(2, 4)
    for args in [(x[0], table, table), (x, table, table[:1]), (x, table[:, :3], table[:, :3]), (x[:1], table, table)]:
        with pytest.raises(ValueError, match="class tables"):
            adaln(*args, None)
    with pytest.raises(ValueError, match="class tables"):
        adaln(x, table, table, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="branch"):
        gated_residual_adaln(x, x[:1], table, table, table, None)


def test_linear_gelu_is_its_definition_and_refuses_what_does_not_fit():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(7, 5), torch.randn(6, 5), torch.tensor([-300.0, -2, -1, 0, 1, 300])

    def definition(x, weight, bias):
        a = x @ weight.T + bias
        return 0.5 * a * (1 + (math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)).tanh())

    assert bounded(linear_gelu(x, weight, bias), definition, x, weight, bias)
    with pytest.raises(ValueError, match="another GELU"):
        linear_gelu(x, weight, bias, backend="cublaslt")
    with pytest.raises(ValueError, match="bias"):
        linear_gelu(x, weight, bias[:5])
    with pytest.raises(ValueError, match="float64"):
        linear_gelu(x, weight.double(), bias)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_rows_times_their_scales_are_the_rows(dtype):
    torch.manual_seed(0)
    x = torch.randn(6, 50) * torch.logspace(-6, 6, 6)[:, None]
    x[2] = 0
    q, scale = quantize_rows(x, dtype)
    off = (x.double() - q.double() * scale.double()[:, None]).abs()
    allowed = scale[:, None] / 2 if dtype == torch.int8 else (x.abs() / 16).maximum(scale[:, None] / 1024)
    assert q.dtype == dtype and bool((off <= allowed * (1 + 1e-5)).all())
    top = 127 if dtype == torch.int8 else 448
    assert (q.float().abs().amax(1) == torch.tensor([top, top, 0, top, top, top])).all()


def test_quantize_rows_refuses_other_dtypes_and_shapes():
    for x, dtype in [(torch.randn(2, 3), torch.uint8), (torch.randn(2, 0), torch.int8), (torch.randn(3), torch.int8)]:
        with pytest.raises(ValueError, match="no rows"):
            quantize_rows(x, dtype)


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    x = torch.randn(2, 3)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="'triton' cannot run: "):
        quantize_rows(x, torch.int8, backend="triton")
    with pytest.raises(ValueError, match="none of torch, triton"):
        quantize_rows(x, torch.int8, backend="auto")


def test_products_follow_pytorchs_own_tf32_setting():
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    try:
        matmul.allow_tf32 = True
        assert [dot_precision(t) for t in (torch.float32, torch.bfloat16)] == ["tf32", "ieee"]
        matmul.allow_tf32 = False
        assert dot_precision(torch.float32) == "ieee"
    finally:
        matmul.allow_tf32 = before


@pytest.mark.parametrize("rows", [0, 1, 8, 17])
def test_nearest_code_is_the_argmin_of_distances(monkeypatch, rows):
    monkeypatch.setattr(importlib.import_module("avarc_kernels.nearest_code"), "ROWS_IN_FLIGHT", 8)
    torch.manual_seed(0)
    z, codebook = torch.randn(rows, 4), torch.randn(30, 4)
    expected = (z.double()[:, None] - codebook.double()).square().sum(-1)
    assert nearest_code(z, codebook).tolist() == (expected.argmin(1).tolist() if rows else [])


def test_nearest_code_takes_the_first_of_equal_entries():
    codebook = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert nearest_code(torch.tensor([[1.0, 1.0]]), codebook).tolist() == [1]
    with pytest.raises(ValueError, match="channels"):
        nearest_code(torch.randn(2, 3), codebook)
