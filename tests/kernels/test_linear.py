"""`linear` against its definition in float64, by all libraries."""

import pytest
import torch

from avarc_kernels import linear_gelu, linear_log_prob, testing
from avarc_kernels.linear import linear, missing, packed
from avarc_kernels.testing import assert_within, float64_reference

BACKENDS = ["torch", "onednn", "avarc"]


def skip_where_it_cannot_run(backend, x):
    if why := missing(backend, x):
        pytest.skip(why)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("M", "F", "C"), [(0, 3, 4), (1, 7, 3), (64, 64, 32), (65, 130, 33), (600, 70, 520)])
def test_equals_the_definition(backend, dtype, bias, M, F, C):
    torch.manual_seed(M)
    x = torch.randn(2, M, C + 1).to(dtype)[..., 1:]  # row strides are not C
    weight = torch.randn(F, C + 2).to(dtype)[:, :C]
    args = (x, weight, torch.randn(F).to(dtype) if bias else None)
    skip_where_it_cannot_run(backend, x)
    with torch.inference_mode():
        actual = linear(*args, backend=backend)
    assert actual.shape == (2, M, F)
    assert_within(actual, *float64_reference(testing.linear, *args), op="linear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("M", "F", "C"), [(0, 3, 4), (1, 7, 3), (65, 130, 33), (600, 70, 20)])
def test_a_packed_weight_multiplies_as_it_did(dtype, M, F, C):
    torch.manual_seed(M)
    x, weight, bias = torch.randn(M, C).to(dtype), torch.randn(F, C + 2).to(dtype)[:, :C], torch.randn(F).to(dtype)
    skip_where_it_cannot_run("onednn", x)
    layout = packed(weight)
    assert layout.shape == weight.shape and layout.dtype == dtype and torch.equal(layout.to_dense(), weight)
    for op, run, definition in (("linear", linear, testing.linear), ("linear_gelu", linear_gelu, testing.linear_gelu)):
        actual = run(x, layout, bias, backend="onednn")
        assert_within(actual, *float64_reference(definition, x, weight, bias), op=op)
        with pytest.raises(ValueError, match="packed"):
            run(x, layout, bias)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_head_multiplies_by_each_library(backend):
    torch.manual_seed(0)
    hidden = 3 * torch.randn(67, 16)
    skip_where_it_cannot_run(backend, hidden)
    args = (hidden, torch.randn(50, 16), torch.randn(50), torch.randint(50, (67,)))
    actual = linear_log_prob(*args, backend=backend)
    assert_within(actual, *float64_reference(testing.linear_log_prob, *args), op="linear_log_prob")


def test_arguments_that_disagree_are_rejected():
    x, weight, bias = torch.randn(7, 5), torch.randn(6, 5), torch.randn(6)
    with pytest.raises(ValueError, match="bias"):
        linear(x, weight, bias[:5])
    with pytest.raises(ValueError, match="float64"):
        linear(x, weight.double(), bias)
    with pytest.raises(ValueError, match="float16 on cpu"):
        linear(x.half(), weight.half(), None, backend="onednn")
    with pytest.raises(ValueError, match="computes no gradients"):
        linear(x, weight.requires_grad_(), bias, backend="onednn")
