"""`residual_rms_norm` against its definition in float64. Triton runs one program per row."""

import pytest
import torch

from avarc_kernels import residual_rms_norm, testing
from avarc_kernels.testing import assert_within, float64_reference


@pytest.mark.parametrize("C", [16, 40, 1000])  # a block, part of one, several warps
@pytest.mark.parametrize("has_branch", [False, True])
def test_equals_its_definition(target, C, has_branch):
    backend, device, dtype = target
    torch.manual_seed(C)
    x = 3 * torch.randn(2, 5, C, device=device)
    x[0] = 2e-3 * torch.randn(5, C, device=device)  # a mean square near eps
    y = torch.randn(2, 5, C, device=device).to(dtype) if has_branch else None
    if has_branch:
        y[0] = 0
    weight = torch.randn(C, device=device)
    stream, normed = residual_rms_norm(x, y, weight, eps=1e-5, backend=backend)
    assert torch.equal(stream, x if y is None else x + y.float())
    assert_within(normed, *float64_reference(testing.rms_norm, stream, weight, 1e-5), op="residual_rms_norm")
    rounded = residual_rms_norm(x, y, weight, eps=1e-5, dtype=dtype, backend=backend)[1]
    assert rounded.dtype == dtype
    assert_within(rounded, normed.to(dtype), 0, op="residual_rms_norm, rounded")


def test_a_row_of_zeros_stays_zero(float32_target):
    backend, device, _ = float32_target
    x = torch.zeros(2, 24, device=device)
    assert torch.equal(residual_rms_norm(x, None, x[0] + 1, eps=1e-5, backend=backend)[1], x)


def test_shapes_that_disagree_are_rejected():
    x = torch.randn(3, 4)
    for args in [(x, None, x[:, 0]), (x, x[:2], x[0])]:
        with pytest.raises(ValueError, match="stream"):
            residual_rms_norm(*args, eps=1e-5)
