"""`linear` against its definition in float64, by both libraries."""

import pytest
import torch

from avarc_kernels import linear_log_prob, testing
from avarc_kernels.linear import linear, onednn_missing
from avarc_kernels.testing import assert_within, float64_reference

BACKENDS = [
    "torch",
    pytest.param("onednn", marks=pytest.mark.skipif(bool(onednn_missing(torch.empty(0))), reason="torch has none")),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("M", "F", "C"), [(0, 3, 4), (1, 7, 3), (64, 64, 32), (65, 130, 33), (600, 70, 20)])
def test_equals_the_definition(backend, bias, M, F, C):
    torch.manual_seed(M)
    x = torch.randn(2, M, C + 1)[..., 1:]  # row strides are not C
    weight = torch.randn(F, C + 2)[:, :C]
    args = (x, weight, torch.randn(F) if bias else None)
    with torch.inference_mode():
        actual = linear(*args, backend=backend)
    assert actual.shape == (2, M, F)
    assert_within(actual, *float64_reference(testing.linear, *args), op="linear")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_head_multiplies_by_either_library(backend):
    torch.manual_seed(0)
    args = (3 * torch.randn(67, 16), torch.randn(50, 16), torch.randn(50), torch.randint(50, (67,)))
    actual = linear_log_prob(*args, backend=backend)
    assert_within(actual, *float64_reference(testing.linear_log_prob, *args), op="linear_log_prob")


def test_arguments_that_disagree_are_rejected():
    x, weight, bias = torch.randn(7, 5), torch.randn(6, 5), torch.randn(6)
    with pytest.raises(ValueError, match="bias"):
        linear(x, weight, bias[:5])
    with pytest.raises(ValueError, match="float64"):
        linear(x, weight.double(), bias)
    with pytest.raises(ValueError, match="bfloat16"):
        linear(x.bfloat16(), weight.bfloat16(), None, backend="onednn")
    with pytest.raises(ValueError, match="computes no gradients"):
        linear(x, weight.requires_grad_(), bias, backend="onednn")
