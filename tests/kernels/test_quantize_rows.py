"""`quantize_rows`: the bound on |x - q * scale|, and the same bits from both backends. Triton: one program per row."""

import pytest
import torch

from avarc_cli.layers.linears import Int8Linear
from avarc_kernels import quantize_rows
from avarc_kernels.testing import assert_within


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_codes_times_scales_are_the_rows(dtype):
    torch.manual_seed(0)
    x = torch.randn(6, 50) * torch.logspace(-6, 6, 6)[:, None]
    x[2] = 0
    q, scale = quantize_rows(x, dtype)
    assert q.dtype == dtype
    allowed = scale[:, None] / 2 if dtype == torch.int8 else (x.abs() / 16).maximum(scale[:, None] / 1024)
    error = (x.double() - q.double() * scale.double()[:, None]).abs()
    assert_within((error - allowed * (1 + 1e-5)).clamp_min(0), torch.zeros_like(error), 0, op="quantize_rows")
    largest = 127 if dtype == torch.int8 else 448
    assert q.float().abs().amax(1).tolist() == [largest, largest, 0, largest, largest, largest]


@pytest.mark.parametrize("C", [1, 100, 1024])
def test_int8_has_the_same_bits_in_triton(triton_target, C):
    _, device, dtype = triton_target
    torch.manual_seed(C)
    x = (torch.randn(7, C, device=device) * torch.logspace(-6, 4, 7, device=device)[:, None]).to(dtype)
    x[2], x[3, 0] = 0, -1000
    assert_same_bits(x)


def test_halfway_quotients_are_divided_and_rounded_alike(triton_device):
    # Numbers that are almost halfway between codes: multiplied by a reciprocal, some would round the other way.
    x = torch.cat([torch.tensor([127.0]), torch.arange(127) + 0.5])[None] * torch.linspace(0.1, 0.9, 9)[:, None]
    assert_same_bits(x.to(triton_device))


def assert_same_bits(x):
    of_triton, of_torch = quantize_rows(x, torch.int8, backend="triton"), quantize_rows(x, torch.int8)
    for actual, expected in zip(of_triton, of_torch, strict=True):
        assert_within(actual, expected, 0, op="quantize_rows")


def test_halves_round_to_even(float32_target):
    backend, device, _ = float32_target
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, 63.5, -126.5]], device=device)
    assert quantize_rows(x, torch.int8, backend=backend)[0].tolist() == [[127, 0, 2, -2, 64, -126]]


def test_float8_has_the_same_scales_and_on_a_gpu_the_same_codes_in_triton(triton_device):
    torch.manual_seed(0)
    x = torch.randn(7, 100, device=triton_device)
    x[2] = 0
    q, scale = quantize_rows(x, torch.float8_e4m3fn, backend="triton")
    expected, expected_scale = quantize_rows(x, torch.float8_e4m3fn)
    assert_within(scale, expected_scale, 0, op="quantize_rows, scale")
    if triton_device == "cuda":  # the interpreter does not round to float8 as a GPU does
        assert_within(q, expected, 0, op="quantize_rows")


def test_8_bit_linears_compute_the_same_bits_with_the_triton_backend(triton_device):
    torch.manual_seed(0)
    layer = Int8Linear(torch.nn.Linear(64, 96, device=triton_device).requires_grad_(False), torch.float32)
    x = torch.randn(20, 64, device=triton_device)
    expected = layer(x)
    layer.kernels = "triton"
    assert_within(layer(x), expected, 0, op="Int8Linear")


def test_the_scale_of_a_row_with_a_nan_is_nan(float32_target):
    backend, device, _ = float32_target
    x = torch.ones(3, 20, device=device)
    x[1, 7] = torch.nan
    assert quantize_rows(x, torch.int8, backend=backend)[1].isnan().tolist() == [False, True, False]


def test_other_dtypes_and_shapes_are_rejected():
    for x, dtype in [(torch.randn(2, 3), torch.uint8), (torch.randn(2, 0), torch.int8), (torch.randn(3), torch.int8)]:
        with pytest.raises(ValueError, match="cannot quantize"):
            quantize_rows(x, dtype)
