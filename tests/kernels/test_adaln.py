"""`adaln` and `gated_residual_adaln` against LayerNorm written out in float64. Triton runs one program per row."""

import pytest
import torch

from avarc_kernels import adaln, gated_residual_adaln, testing
from avarc_kernels.testing import assert_within, float64_reference


@pytest.mark.parametrize("C", [16, 40, 1000])  # a block, part of one, several warps
@pytest.mark.parametrize("rows", [None, [4, 0, 4]])
def test_equal_their_definitions(target, C, rows):
    backend, device, dtype = target
    torch.manual_seed(C)
    x = 3 * torch.randn(3, 10, C, device=device) + 100  # computing the variance as E[x^2] - E[x]^2 would cancel
    x[1] = 1e-3 * torch.randn(10, C, device=device)  # a variance near eps
    y = torch.randn(3, 10, C, device=device).to(dtype)
    table = torch.randn(3 if rows is None else 5, 6, C, device=device)
    row = None if rows is None else torch.tensor(rows, device=device)
    gate, scale, shift = (table[:, i] for i in (1, 3, 5))  # views: the row stride is 6 C

    out = adaln(x, scale, shift, row, backend=backend)
    assert_within(out, *float64_reference(testing.adaln, x, scale, shift, row), op="adaln")
    assert_is_rounded(adaln(x, scale, shift, row, dtype=dtype, backend=backend), out, dtype)

    stream, out = gated_residual_adaln(x, y, gate, scale, shift, row, backend=backend)
    reference = float64_reference(testing.gated_residual, x, y, gate, row, compute_dtype=torch.float32)
    assert_within(stream, *reference, op="gated_residual_adaln, stream")
    assert_within(out, *float64_reference(testing.adaln, stream, scale, shift, row), op="gated_residual_adaln")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_rounded_once(dtype):
    torch.manual_seed(0)
    x, y, (gate, scale, shift) = torch.randn(3, 4, 10), torch.randn(3, 4, 10).to(dtype), torch.randn(3, 3, 10)
    assert_is_rounded(adaln(x, scale, shift, None, dtype=dtype), adaln(x, scale, shift, None), dtype)
    stream, out = gated_residual_adaln(x, y, gate, scale, shift, None, dtype=dtype)
    assert stream.dtype == torch.float32
    assert_is_rounded(out, adaln(stream, scale, shift, None), dtype)


def assert_is_rounded(actual, exact, dtype):
    assert actual.dtype == dtype
    assert_within(actual, exact.to(dtype), 0, op="adaln")


def test_a_row_without_variance_becomes_the_shift(float32_target):
    backend, device, _ = float32_target
    x, shift = torch.full((1, 2, 24), 7.0, device=device), torch.randn(1, 24, device=device)
    assert torch.equal(adaln(x, shift, shift, None, backend=backend), shift.expand(1, 2, -1))


def test_shapes_that_disagree_are_rejected():
    x, table = torch.randn(2, 3, 4), torch.randn(2, 4)
    for args in [(x[0], table, table), (x, table, table[:1]), (x, table[:, :3], table[:, :3]), (x[:1], table, table)]:
        with pytest.raises(ValueError, match="class tables"):
            adaln(*args, None)
    with pytest.raises(ValueError, match="class tables"):
        adaln(x, table, table, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="branch"):
        gated_residual_adaln(x, x[:1], table, table, table, None)
