"""flash-attn as a backend of both attentions, by a stand-in on a CPU and for real on a GPU that has it."""

import importlib.util
from functools import partial

import pytest
import torch

from avarc_kernels import block_causal_attention, causal_attention, flash_missing, rotary, swiglu, testing
from avarc_kernels.testing import assert_within, float64_reference

BOTH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
HAS_GPU = torch.cuda.is_available()


@pytest.fixture(params=["stand-in", pytest.param("flash-attn", marks=pytest.mark.gpu)])
def device(request):
    """Where flash-attn or its stand-in computes."""
    if request.param == "stand-in":
        request.getfixturevalue("flash_attn")
        return "cpu"
    if not HAS_GPU or importlib.util.find_spec("flash_attn") is None:
        pytest.skip("needs a GPU and flash-attn")
    return "cuda"


@BOTH
@pytest.mark.parametrize("backend", ["flash", "flash+torch", "flash+triton"])
@pytest.mark.parametrize(("prefix", "ends"), [(0, [1, 5, 14]), (7, [9, 20])])
def test_block_causal_attention_equals_masked_attention(device, dtype, backend, prefix, ends):
    torch.manual_seed(0)
    q = torch.randn(2, ends[-1], 3, 16, device=device).to(dtype).transpose(1, 2)
    cache = torch.randn(2, 2, 3, prefix + ends[-1] + 4, 16, device=device).to(dtype)  # longer than its contents
    k, v = cache[:, :, :, : prefix + ends[-1]]
    gain = torch.tensor([1.0, 3.0, 10.0], device=device)
    actual = block_causal_attention(q, k, v, ends, scale=0.7, gain_H=gain, backend=backend)
    assert actual.dtype == dtype
    reference = float64_reference(testing.block_causal_attention, q, k, v, ends, 0.7, gain)
    assert_within(actual, *reference, op="block_causal_attention")


@BOTH
@pytest.mark.parametrize(("prefix", "new", "H", "G", "D"), [(0, 12, 4, 4, 16), (9, 7, 4, 2, 24), (30, 1, 6, 1, 100)])
def test_causal_attention_equals_masked_attention(device, dtype, prefix, new, H, G, D):
    torch.manual_seed(0)
    q = torch.randn(2, new, H, D, device=device).to(dtype).transpose(1, 2)
    k, v = torch.randn(2, 2, prefix + new, G, D, device=device).to(dtype).transpose(2, 3)
    actual = causal_attention(q, k, v, scale=0.5, backend="flash")
    assert_within(actual, *float64_reference(testing.causal_attention, q, k, v, 0.5), op="causal_attention")


def attend(q, backend="flash"):
    return causal_attention(q, q, q, scale=1.0, backend=backend)


def test_no_sequences_give_no_sequences(device):
    assert attend(torch.zeros(0, 2, 3, 16, dtype=torch.bfloat16, device=device)).shape == (0, 2, 3, 16)


def test_what_flash_attn_does_not_compute_is_rejected(flash_attn):
    with pytest.raises(ValueError, match="bfloat16 and float16, and the queries are"):
        attend(torch.zeros(1, 2, 3, 16))
    with pytest.raises(ValueError, match="at most 256 channels, not 264"):
        attend(torch.zeros(1, 2, 3, 264, dtype=torch.bfloat16))
    assert not flash_attn


def test_the_reason_is_named_where_it_cannot_run(monkeypatch):
    q = torch.zeros(1, 2, 3, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'flash' cannot run: the package flash-attn is not installed"):
        attend(q, "flash+torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert flash_missing(torch.device("cpu")) == "flash-attn needs a CUDA device, and the tensors are on cpu"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0, this GPU has 7.5" in (flash_missing(torch.device("cuda")) or "")


def test_operations_without_it_take_the_other_backend(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    a = torch.randn(2, 3, 2, 16)
    for operation in (partial(swiglu, a, a), partial(rotary, a, torch.randn(3, 8, 2))):
        assert torch.equal(operation(backend="flash+torch"), operation())
        with pytest.raises(ValueError, match="'triton' cannot run"):
            operation(backend="flash+triton")
        with pytest.raises(ValueError, match="unknown backend 'flash'"):
            operation(backend="flash")
