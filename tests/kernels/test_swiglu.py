"""`swiglu` against its definition in float64. A Triton program takes 1024 numbers."""

import pytest
import torch

from avarc_kernels import swiglu, testing
from avarc_kernels.testing import assert_within, float64_reference


@pytest.mark.parametrize("shape", [(1, 7), (4, 256), (3, 700)])  # part of a program; a program; two and a part
def test_equals_its_definition(target, shape):
    backend, device, dtype = target
    torch.manual_seed(shape[1])
    a, b = (10 * torch.randn(2, *shape, device=device)).to(dtype)
    a[0, :2] = torch.tensor([-90.0, 90.0])  # the sigmoid is 0 and 1
    actual = swiglu(a, b, backend=backend)
    assert actual.dtype == dtype
    reference = float64_reference(testing.swiglu, a, b, compute_dtype=torch.float32, result_dtype=dtype)
    assert_within(actual, *reference, op="swiglu")


def test_inputs_that_disagree_are_rejected():
    a = torch.randn(3, 4)
    for b in (a[:2], a.double()):
        with pytest.raises(ValueError, match="b"):
            swiglu(a, b)
