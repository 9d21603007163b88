"""Attention in bfloat16 by two products, against its definition in float64, and where it takes PyTorch's place."""

import importlib

import pytest
import torch

from avarc_kernels import block_causal_attention, cpu_attention, testing
from avarc_kernels.cpu_attention import attention_by_products, faster_by_products
from avarc_kernels.testing import assert_within, float64_reference

OP = "block_causal_attention"


def projected(P, H, T, S, D):
    """Queries, keys and values as a network has them: views of a product, and of a longer cache."""
    torch.manual_seed(S)
    q = torch.randn(P, T, 3, H, D).bfloat16()[:, :, 0].transpose(1, 2)
    cache = torch.randn(2, P, H, S + 5, D).bfloat16()
    return q, cache[0, :, :, :S], cache[1, :, :, :S]


@pytest.mark.parametrize("at_once", [1, 3 * 4 * 40 * 70, 1 << 30])
@pytest.mark.parametrize(("P", "H", "T", "S", "D"), [(1, 1, 1, 1, 8), (2, 3, 40, 70, 16), (0, 2, 4, 4, 8)])
def test_equals_the_definition(monkeypatch, at_once, P, H, T, S, D):
    monkeypatch.setattr(cpu_attention, "WEIGHTS_AT_ONCE", at_once)
    q, k, v = projected(P, H, T, S, D)
    q[..., :1] *= 30  # some keys get nearly all of the weight
    with torch.inference_mode():
        actual = attention_by_products(q, k, v, 0.3)
    assert actual.shape == q.shape and actual.dtype == torch.bfloat16
    assert_within(actual, *float64_reference(testing.block_causal_attention, q, k, v, [T], 0.3), op=OP)


def test_it_takes_the_place_of_pytorchs_where_it_is_faster(monkeypatch):
    monkeypatch.setattr(cpu_attention, "_has_bf16_without_amx", lambda: True)
    q, k, v = projected(2, 2, 100, 130, 8)
    ends, calls = [4, 100], []
    monkeypatch.setattr(
        importlib.import_module("avarc_kernels.block_causal_attention"),
        "attention_by_products",
        lambda *args: calls.append(args[0].shape[2]) or attention_by_products(*args),
    )
    with torch.inference_mode():
        actual = block_causal_attention(q, k, v, ends, scale=0.3)
    assert calls == [96], "the first segment has few products"
    assert_within(actual, *float64_reference(testing.block_causal_attention, q, k, v, ends, 0.3), op=OP)
    with torch.no_grad():
        assert not faster_by_products(q, k), "a loss is the same with and without gradients"
    with torch.inference_mode():
        assert faster_by_products(q, k) and not faster_by_products(q.float(), k.float())
        monkeypatch.setattr(cpu_attention, "_has_bf16_without_amx", lambda: False)
        assert not faster_by_products(q, k)
