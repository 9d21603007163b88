"""`int16_linear`: as exact as its integers allow, for any inputs, on processors with and without AVX-512."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from avarc_kernels import c_library
from avarc_kernels import int16_linear as module
from avarc_kernels.int16_linear import AT_ONCE, int16_linear, missing, pack

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
INSTRUCTIONS = {"AVX2": "-march=haswell", "no VNNI": "-mno-avx512vnni"}


@pytest.fixture
def compile_again(monkeypatch):
    """Compile it with these options more, or with this compiler, and as usual afterwards."""

    def compile_again(*flags, compiler=""):
        monkeypatch.setattr(c_library, "FLAGS", (*c_library.FLAGS, *flags))
        monkeypatch.setenv("CC", compiler)
        module._build.cache_clear()

    yield compile_again
    module._build.cache_clear()


def emulated(x, weight, bias):
    """The same integers, multiplied in float64."""
    scale_N = pack(weight).scale_N
    integers = (weight / scale_N[:, None]).round().double()
    scale_M = x.abs().amax(1, keepdim=True).clamp_min(1e-30) / pack(weight).levels
    y = (x / scale_M).round().double() @ integers.T * scale_M.double() * scale_N.double()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (3, 50, 33), (4, 64, 512), (9, 32, 1025), (130, 70, 700)])
def test_equals_products_of_its_integers_and_is_close_to_the_exact_ones(M, N, K, bias):
    torch.manual_seed(M)
    x, weight = torch.randn(M, K + 3)[:, :K], torch.randn(N, K)  # row strides are not K
    bias_N = torch.randn(N) if bias else None
    y = int16_linear(x, pack(weight), bias_N)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias_N is None else bias_N.double())
    assert y.shape == (M, N) and y.is_contiguous()
    assert float((y - exact).norm() / exact.norm()) < 5e-4
    step = x.abs().amax(1, keepdim=True) / pack(weight).levels * weight.abs().amax(1)  # a tie may round the other way
    assert bool(((y - emulated(x, weight, bias_N)).abs() <= step + 1e-5 * exact.abs().max()).all())


def test_the_largest_sums_do_not_overflow():
    x, weight = torch.ones(5, 3 * AT_ONCE), torch.ones(40, 3 * AT_ONCE)
    weight[1] = -1
    weight[2, 1:] = 0.1
    y = int16_linear(x, pack(weight), None)
    assert torch.allclose(y, x @ weight.T, rtol=2e-3)
    assert torch.equal(y[:, 0], -y[:, 1])


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_bits_depend_neither_on_instructions_nor_on_other_rows(compile_again, instructions):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(700, 1100), torch.randn(90, 1100), torch.randn(90)
    x[3] *= 1000
    expected = int16_linear(x, pack(weight), bias)
    compile_again(INSTRUCTIONS[instructions])
    whole, alone = (int16_linear(part, pack(weight), bias) for part in (x, x[4:5]))
    assert torch.equal(whole, expected) and torch.equal(alone, expected[4:5])


def test_bits_do_not_depend_on_threads():
    """In a process of its own: threads of OpenMP do not survive the forks of other tests."""
    script = """
import torch
from avarc_kernels.int16_linear import int16_linear, pack
x, weight = torch.randn(700, 1100), pack(torch.randn(90, 1100))
found = []
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    found.append(int16_linear(x, weight, None))
assert all(torch.equal(found[0], each) for each in found)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_rows_of_zeros_tiny_numbers_and_numbers_that_are_not_finite():
    torch.manual_seed(0)
    weight, x = torch.randn(20, 40), torch.randn(6, 40)
    x[0], x[1], x[2, 5], x[3, 6], x[4] = 0, 1e-38, float("nan"), float("-inf"), 1e36
    y = int16_linear(x, pack(weight), torch.ones(20))
    assert bool((y[:2] == 1).all()) and y.isnan().any(1).tolist() == [False, False, True, True, False, False]
    assert y[2:4].isnan().all() and torch.allclose(y[4] / 1e36, weight.sum(1), atol=1e-2)
    weight[3] = 0
    assert bool((int16_linear(x[5:], pack(weight), None)[:, 3] == 0).all())


def test_no_rows_are_no_rows():
    assert int16_linear(torch.empty(0, 8), pack(torch.randn(5, 8)), torch.ones(5)).shape == (0, 5)


def test_what_it_does_not_multiply_is_refused():
    weight = pack(torch.randn(5, 8))
    for bad in (torch.randn(5), torch.randn(0, 8), torch.randn(5, 8).double(), torch.empty(5, 8, device="meta")):
        with pytest.raises(ValueError, match="a weight is a matrix of float32"):
            pack(bad)
    x, packed = torch.randn(2, 8), weight.packed
    for bad in (packed.int(), packed.T.contiguous().T, packed.to("meta"), packed[:1]):
        with pytest.raises(ValueError, match="the weight is not as `pack` made it"):
            int16_linear(x, replace(weight, packed=bad), None)
    with pytest.raises(ValueError, match=r"the weight's scale is float32 on a CPU, not \(5,\) torch.bfloat16"):
        int16_linear(x, replace(weight, scale_N=weight.scale_N.bfloat16()), None)
    with pytest.raises(ValueError, match=r"x \(8,\)"):
        int16_linear(x[0], weight, None)
    for channels in (7, 11):
        with pytest.raises(ValueError, match=rf"x \(2, {channels}\), .* a weight of 5 by 8 channels"):
            int16_linear(torch.randn(2, channels), weight, None)
    with pytest.raises(ValueError, match=r"bias \(6,\)"):
        int16_linear(torch.randn(2, 8), weight, torch.randn(6))
    with pytest.raises(ValueError, match=r"x is float32 on a CPU, not \(2, 8\) torch\.bfloat16"):
        int16_linear(torch.randn(2, 8).bfloat16(), weight, None)
    with pytest.raises(ValueError, match="there are no gradients"):
        int16_linear(torch.randn(2, 8, requires_grad=True), weight, None)


@pytest.mark.parametrize(
    ("compiler", "flag", "why"),
    [
        ("no-such-compiler", "", "the C compiler 'no-such-compiler' cannot be run: "),
        ("gcc '", "", "cannot be run: No closing quotation"),
        ("false", "", "the C compiler 'false' failed: it says nothing"),
        ("", "-march=no-such-processor", "error"),
        ("", "-c", "cannot be kept or loaded"),
    ],
)
def test_where_it_cannot_be_compiled_it_says_why(compile_again, compiler, flag, why):
    compile_again(*filter(None, [flag]), compiler=compiler)
    assert why in str(missing())
    with pytest.raises(ValueError, match="products of 16-bit integers cannot run: "):
        pack(torch.randn(5, 8))


def test_without_a_compiler_or_avx2_it_says_so(compile_again, monkeypatch):
    compile_again()
    monkeypatch.setattr(c_library, "COMPILERS", ("no-gcc", "no-cc"))
    assert missing() == "it needs a C compiler, and there is no no-gcc, no no-cc and no CC"
    compile_again()
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: False)
    assert missing() == "this processor has no AVX2"


def test_without_a_folder_for_temporary_files_it_says_so(compile_again, monkeypatch, tmp_path):
    compile_again()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert "cannot be kept or loaded: " in str(missing()) and "TMPDIR can name another folder" in str(missing())
