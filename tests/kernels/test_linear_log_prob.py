"""`linear_log_prob` against its definition in float64.

Triton's tiles have 64 rows, 64 columns and 32 channels in float32, twice as many in half precision; a program takes 512
columns. The torch backend takes as many rows as give `CHUNK_LOGITS`.
"""

import sys

import pytest
import torch

from avarc_kernels import linear_log_prob, testing
from avarc_kernels.testing import assert_within, float64_reference


@pytest.mark.parametrize("V", [7, 64, 512, 513, 1100])  # below a tile, a tile, a program, one column and more beyond
@pytest.mark.parametrize(("M", "C"), [(3, 32), (128, 33), (129, 70)])  # rows and channels: below, at, beyond tiles
def test_equals_the_definition(target, M, V, C):
    backend, device, dtype = target
    torch.manual_seed(M + V)
    hidden = torch.randn(M, C + 5, device=device).to(dtype)[:, :C]  # row stride is not C
    weight = torch.randn(V, C + 3, device=device).to(dtype)[:, 1 : C + 1]  # nor is it in the weight
    bias = torch.randn(V, device=device).to(dtype)
    bias[-1] = 40.0  # the maximum comes last, so every running sum must be rescaled
    token = torch.randint(V, (M,), device=device)
    token[0], token[-1] = V - 1, 0
    args = (hidden, weight, bias, token)
    actual = linear_log_prob(*args, backend=backend)
    assert actual.dtype == torch.float32 and bool((actual <= 0).all())
    reference = float64_reference(testing.linear_log_prob, *args, compute_dtype=torch.float32)
    assert_within(actual, *reference, op="linear_log_prob")


@pytest.mark.parametrize("M", [0, 1, 19, 20, 21, 67])
def test_the_torch_backend_joins_its_chunks(monkeypatch, M):
    monkeypatch.setattr(sys.modules[linear_log_prob.__module__], "CHUNK_LOGITS", 20 * 50 + 30)
    torch.manual_seed(0)
    args = (3 * torch.randn(M, 16), torch.randn(50, 16), torch.randn(50), torch.randint(50, (M,)))
    assert_within(linear_log_prob(*args), *float64_reference(testing.linear_log_prob, *args), op="linear_log_prob")


@pytest.mark.parametrize("offset", [-3000.0, 3000.0])  # exp of either is 0 or infinite in float32
def test_a_large_common_offset_of_the_logits_cancels(float32_target, offset):
    backend, device, _ = float32_target
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 16, device=device), torch.randn(600, 16, device=device)
    bias, token = torch.full((600,), offset, device=device), torch.randint(600, (9,), device=device)
    args = (hidden, weight, bias, token)
    actual = linear_log_prob(*args, backend=backend)
    assert_within(actual, *float64_reference(testing.linear_log_prob, *args), op="linear_log_prob")


@pytest.mark.parametrize("V", [50, 520])
def test_probabilities_of_all_tokens_sum_to_one(float32_target, V):
    backend, device, _ = float32_target
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 16, device=device).expand(V, -1), torch.randn(V, 16, device=device)
    log_prob = linear_log_prob(hidden, weight, None, torch.arange(V, device=device), backend=backend)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_certain_token_has_a_log_probability_of_zero_not_above(float32_target):
    backend, device, _ = float32_target
    hidden, weight = torch.ones(300, 1, device=device), torch.ones(600, 1, device=device)
    weight[1:] = -200
    token = torch.zeros(300, dtype=torch.int64, device=device)
    assert linear_log_prob(hidden, weight, None, token, backend=backend).unique().tolist() == [0.0]


def test_a_row_does_not_depend_on_the_batch(triton_device):
    torch.manual_seed(0)
    hidden, weight = torch.randn(150, 16, device=triton_device), torch.randn(600, 16, device=triton_device)
    token = torch.randint(600, (150,), device=triton_device)
    of_all = linear_log_prob(hidden, weight, None, token, backend="triton")
    assert torch.equal(of_all[70:72], linear_log_prob(hidden[70:72], weight, None, token[70:72], backend="triton"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU rounds the logits of half-precision inputs")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_torch_backend_keeps_logits_of_half_precision_inputs_in_float32_on_cuda(dtype):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(40, 64, device="cuda") * 4).to(dtype), torch.randn(96, 64, device="cuda").to(dtype)
    args = (hidden, weight, torch.randn(96, device="cuda").to(dtype), torch.randint(96, (40,), device="cuda"))
    expected, _ = float64_reference(testing.linear_log_prob, *args)
    assert_within(linear_log_prob(*args), expected, 1e-4, op="linear_log_prob")


def test_shapes_that_disagree_are_rejected():
    with pytest.raises(ValueError, match="hidden"):
        linear_log_prob(torch.randn(3, 4), torch.randn(5, 6), None, torch.zeros(3, dtype=torch.long))
