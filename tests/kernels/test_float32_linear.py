"""`float32_linear`: each number by itself, whatever is multiplied beside it. Its exactness is in test_linear.py."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avarc_kernels import c_library, float32_linear
from avarc_kernels.linear import linear

X = torch.empty(0)
pytestmark = pytest.mark.skipif(float32_linear.missing(X) is not None, reason=str(float32_linear.missing(X)))
sizes = st.integers(1, 40)


@given(M=sizes, N=sizes, K=st.integers(1, 600), chosen=st.data())
def test_bits_of_a_number_depend_on_its_row_and_its_weights_alone(M, N, K, chosen):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(M, K), torch.randn(N, K), torch.randn(N)
    expected = linear(x, weight, bias, backend="avarc")
    rows = sorted(chosen.draw(st.sets(st.integers(0, M - 1), min_size=1)))
    columns = sorted(chosen.draw(st.sets(st.integers(0, N - 1), min_size=1)))
    part = linear(x[rows], weight[columns], bias[columns], backend="avarc")
    assert torch.equal(part, expected[rows][:, columns])


def test_bits_do_not_depend_on_threads():
    """In a process of its own: threads of OpenMP do not survive the forks of other tests."""
    script = """
import torch
from avarc_kernels.linear import linear
x, weight = torch.randn(700, 1100), torch.randn(90, 1100)
found = []
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    found.append(linear(x, weight, None, backend="avarc"))
assert all(torch.equal(found[0], each) for each in found)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_numbers_that_are_not_finite_stay_in_their_row_and_column():
    x, weight = torch.ones(9, 300), torch.ones(19, 300)
    x[3, 5], x[4, 6], weight[18, 7] = float("nan"), float("-inf"), float("inf")
    y = linear(x, weight, None, backend="avarc")
    assert torch.equal(y[3].isnan(), torch.ones(19, dtype=torch.bool)) and bool((y[4, :18] == float("-inf")).all())
    y[3:5], y[:, 18] = 300, 300
    assert bool((y == 300).all())


def test_nothing_beside_the_result_is_written():
    """Sizes that are no multiples of what is computed at a time, inside a larger piece of memory."""
    library, (M, N, K) = float32_linear._build(), (7, 17, 5)
    x, weight, bias, around = torch.ones(M, K), torch.ones(N, K), torch.ones(N), torch.zeros(M * N + 64)
    scratch = torch.empty(12, K)
    pointers = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), around[32:].data_ptr(), scratch.data_ptr())
    library.linear(*pointers, M, N, K, 1)
    assert bool((around[32 : 32 + M * N] == 6).all()) and around.count_nonzero() == M * N


def test_no_channels_leave_the_bias():
    bias = torch.arange(5.0)
    assert torch.equal(linear(torch.empty(2, 3, 0), torch.empty(5, 0), bias, backend="avarc"), bias.expand(2, 3, 5))


def test_where_it_cannot_be_compiled_it_says_why(monkeypatch):
    monkeypatch.setattr(c_library, "COMPILERS", ("no-gcc", "no-cc"))
    monkeypatch.setenv("CC", "")
    float32_linear._build.cache_clear()
    try:
        with pytest.raises(
            ValueError, match="backend 'avarc' cannot run: it needs a C compiler, and there is no no-gcc"
        ):
            linear(torch.ones(2, 3), torch.ones(4, 3), None, backend="avarc")
    finally:
        float32_linear._build.cache_clear()


def test_other_numbers_are_refused():
    with pytest.raises(ValueError, match=r"float32 on a CPU, and the tensor is torch\.bfloat16"):
        linear(torch.ones(2, 3).bfloat16(), torch.ones(4, 3).bfloat16(), None, backend="avarc")
    with pytest.raises(ValueError, match="computes no gradients"):
        linear(torch.ones(2, 3), torch.ones(4, 3).requires_grad_(), None, backend="avarc")
