"""`linear_gelu` against its definition in float64.

Triton's tiles have 64 rows, 64 columns and 32 channels in float32, 128, 256 and 64 in half precision, in groups of 8.
"""

from functools import partial

import pytest
import torch

from avarc_kernels import linear_gelu, testing
from avarc_kernels.linear import onednn_missing
from avarc_kernels.testing import assert_within, float64_reference


@pytest.mark.parametrize(("M", "F", "C"), [(1, 7, 3), (64, 64, 32), (65, 130, 33), (600, 70, 20)])
def test_equals_the_definition(target, M, F, C):
    backend, device, dtype = target
    torch.manual_seed(M)
    x = torch.randn(M, C + 1, device=device).to(dtype)[:, 1:]
    weight = torch.randn(F, C + 2, device=device).to(dtype)[:, :C]
    bias = torch.randn(F, device=device).to(dtype)
    bias[0], bias[-1] = -300, 300  # gelu is 0 and the identity there
    actual = linear_gelu(x, weight, bias, backend=backend)
    assert actual.dtype == dtype
    assert_within(actual, *float64_reference(testing.linear_gelu, x, weight, bias), op="linear_gelu")


@pytest.mark.parametrize("form", ["tanh", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("M", "F", "C"), [(1, 7, 3), (65, 130, 33)])
def test_an_epilogue_of_onednn_equals_the_definition(form, dtype, M, F, C):
    torch.manual_seed(M)
    x, weight, bias = torch.randn(M, C).to(dtype), torch.randn(F, C).to(dtype), torch.randn(F).to(dtype)
    if why := onednn_missing(x):
        pytest.skip(why)
    exact, bound = float64_reference(partial(defined, form=form), x, weight, bias)
    assert_within(linear_gelu(x, weight, bias, approximate=form, backend="onednn"), exact, bound, op="linear_gelu")


def defined(x, weight, bias, form):
    return torch.nn.functional.gelu(x @ weight.T + bias, approximate=form)


def test_arguments_that_disagree_are_rejected():
    x, weight, bias = torch.randn(7, 5), torch.randn(6, 5), torch.randn(6)
    with pytest.raises(ValueError, match="form of GELU 'erf'"):
        linear_gelu(x, weight, bias, approximate="erf")
    with pytest.raises(ValueError, match="erf form"):
        linear_gelu(x, weight, bias, backend="cublaslt")
    with pytest.raises(ValueError, match="tanh form"):
        linear_gelu(x, weight, bias, approximate="none", backend="cublaslt")
    with pytest.raises(ValueError, match="float16 on cpu"):
        linear_gelu(x.half(), weight.half(), bias.half(), backend="onednn")
    with pytest.raises(ValueError, match="erf form"):
        linear_gelu(x, weight, bias, backend="cublaslt")
    with pytest.raises(ValueError, match="bias"):
        linear_gelu(x, weight, bias[:5])
    with pytest.raises(ValueError, match="float64"):
        linear_gelu(x, weight.double(), bias)
