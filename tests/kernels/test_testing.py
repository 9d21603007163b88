"""The yardstick itself: a wrong result fails, and the message says where."""

import pytest
import torch

from avarc_kernels import testing
from avarc_kernels.testing import assert_within, float64_reference, max_error


def test_a_failure_names_the_operation_the_worst_element_and_the_bound():
    expected = torch.zeros(2, 3, dtype=torch.float64)
    actual = torch.tensor([[0.0, 0.25, 0.0], [0.0, 0.0, -0.5]])
    assert_within(actual, expected, 0.5, op="adaln")
    with pytest.raises(AssertionError) as e:
        assert_within(actual, expected, 0.125, op="adaln")
    assert str(e.value) == (
        "adaln (2, 3) float32: element (1, 2) is -0.5, expected 0.0: error 0.5, allowed 0.125 "
        "(2 of 6 elements exceed it)"
    )


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_results_that_are_not_finite_fail(wrong):
    with pytest.raises(AssertionError, match=rf"element \(1,\) is {wrong}"):
        assert_within(torch.tensor([0.0, wrong]), torch.zeros(2), 1e9, op="adaln")


def test_other_shapes_fail_and_empty_results_do_not():
    with pytest.raises(AssertionError, match=r"adaln \(1,\) float32: expected shape \(2,\)"):
        assert_within(torch.zeros(1), torch.zeros(2), 1.0, op="adaln")
    assert_within(torch.zeros(0, 3), torch.zeros(0, 3), 0.0, op="adaln")


def test_the_bound_is_twice_pytorchs_own_error_in_the_dtype_that_is_computed_in():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(9, 16).bfloat16(), torch.randn(5, 16).bfloat16(), torch.randn(5).bfloat16()
    exact, bound = float64_reference(testing.linear_gelu, x, weight, bias)
    assert exact.dtype == torch.float64
    rounding = 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()
    assert bound == 2 * max_error(testing.linear_gelu(x, weight, bias), exact) + 1e-6 + rounding
    _, of_float32 = float64_reference(testing.linear_gelu, x, weight, bias, compute_dtype=torch.float32)
    _, rounded = float64_reference(
        testing.linear_gelu, x, weight, bias, compute_dtype=torch.float32, result_dtype=torch.bfloat16
    )
    assert of_float32 < 1e-5 < rounded < bound


@pytest.mark.parametrize("ends", [[5], [1, 5], [2, 3, 5]])
def test_the_definition_of_attention_ignores_later_segments(ends):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 5, 4, dtype=torch.float64)
    out = testing.block_causal_attention(q, k, v, ends, 0.5)
    for start, end in zip([0, *ends], ends, strict=False):
        part = (q[:, :, start:end] @ k[:, :, :end].mT * 0.5).softmax(-1) @ v[:, :, :end]
        assert_within(out[:, :, start:end], part, 1e-12, op="block_causal_attention")
