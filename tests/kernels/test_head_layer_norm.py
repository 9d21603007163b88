"""`head_layer_norm` against its definition in float64. Triton normalizes 16 heads at once."""

import pytest
import torch

from avarc_kernels import head_layer_norm, testing
from avarc_kernels.testing import assert_within, float64_reference


@pytest.mark.parametrize(("H", "D"), [(1, 8), (3, 20), (16, 48), (17, 64)])  # one head; parts of a block; one; two
def test_equals_its_definition(target, H, D):
    backend, device, dtype = target
    torch.manual_seed(D)
    qkv = torch.randn(2, 5, 3 * H, D, device=device)
    qkv[0, :2] = 1e-3 * torch.randn(2, 3 * H, D, device=device) + 1  # a variance near eps
    x = qkv.to(dtype)[:, :, H : 2 * H]  # a view
    weight, bias = torch.randn(2, D, device=device)
    actual = head_layer_norm(x, weight, bias, eps=1e-6, dtype=torch.float32, backend=backend)
    reference = float64_reference(testing.head_layer_norm, x, weight, bias, 1e-6, compute_dtype=torch.float32)
    assert_within(actual, *reference, op="head_layer_norm")
    rounded = head_layer_norm(x, weight, bias, eps=1e-6, backend=backend)
    assert rounded.dtype == dtype and rounded.is_contiguous()
    assert_within(rounded, actual.to(dtype), 0, op="head_layer_norm, rounded")


@pytest.mark.parametrize("constant", [0.0, 0.1, 1000.1])
def test_heads_whose_channels_are_all_the_same_become_the_bias(float32_target, constant):
    backend, device, _ = float32_target
    x, bias = torch.full((1, 2, 3, 48), constant, device=device), torch.randn(48, device=device)
    normed = head_layer_norm(x, torch.ones_like(bias), bias, eps=1e-6, backend=backend)
    assert torch.allclose(normed, bias.expand_as(x), atol=1e-4)


@pytest.mark.parametrize(("x", "weight", "bias"), [((2, 3, 8), 8, 8), ((1, 2, 3, 8), 4, 8), ((1, 2, 3, 8), 8, 4)])
def test_shapes_that_disagree_are_rejected(x, weight, bias):
    with pytest.raises(ValueError, match="heads"):
        head_layer_norm(torch.randn(x), torch.randn(weight), torch.randn(bias), eps=1e-6)
