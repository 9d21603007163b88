"""What all operations have in common: choice of the backend, gradients, empty and unsupported inputs."""

import importlib.util
import inspect
import shutil

import pytest
import torch

import avarc_kernels
from avarc_kernels import dispatch, triton_missing
from avarc_kernels.dispatch import dot_precision


def arguments(n, device="cpu"):
    """Valid arguments of every operation, with n rows or sequences; fresh tensors at every call."""

    def randn(*shape):
        return torch.randn(*shape, device=device)

    return {
        "linear_log_prob": {
            "hidden_MC": randn(n, 16),
            "weight_VC": randn(5, 16),
            "bias_V": randn(5),
            "target_M": torch.zeros(n, dtype=torch.int64, device=device),
        },
        "block_causal_attention": {
            "q_PHTD": randn(n, 2, 3, 16),
            "k_PHSD": randn(n, 2, 3, 16),
            "v_PHSD": randn(n, 2, 3, 16),
            "ends": [1, 3],
            "scale": 1.0,
            "gain_H": torch.ones(2, device=device),
        },
        "adaln": {"x_PTC": randn(n, 2, 16), "scale_NC": randn(n, 16), "shift_NC": randn(n, 16), "row_P": None},
        "gated_residual_adaln": {
            "x_PTC": randn(n, 2, 16),
            "y_PTC": randn(n, 2, 16),
            "gate_NC": randn(n, 16),
            "scale_NC": randn(n, 16),
            "shift_NC": randn(n, 16),
            "row_P": None,
        },
        "nearest_code": {"z_NZ": randn(n, 16), "codebook_VZ": randn(5, 16)},
        "linear_gelu": {"x_MC": randn(n, 16), "weight_FC": randn(5, 16), "bias_F": randn(5)},
        "quantize_rows": {"x_MC": randn(n, 16), "dtype": torch.int8},
        "causal_attention": {
            "q_PHTD": randn(n, 2, 3, 16),
            "k_PGSD": randn(n, 1, 4, 16),
            "v_PGSD": randn(n, 1, 4, 16),
            "scale": 1.0,
        },
        "residual_rms_norm": {"x_MC": randn(n, 16), "y_MC": randn(n, 16), "weight_C": randn(16), "eps": 1e-5},
        "head_layer_norm": {"x_PTHD": randn(n, 3, 2, 16), "weight_D": randn(16), "bias_D": randn(16), "eps": 1e-6},
        "rotary": {"x_PTHD": randn(n, 3, 2, 16), "table_TJ2": randn(3, 8, 2)},
        "swiglu": {"a_MF": randn(n, 16), "b_MF": randn(n, 16)},
    }


OPS = list(arguments(1))
DIFFERENTIABLE = [
    (op, name)
    for op, args in arguments(1).items()
    for name, arg in args.items()
    if isinstance(arg, torch.Tensor) and arg.is_floating_point()
]


def call(op, args, backend):
    return getattr(avarc_kernels, op)(**args, backend=backend)


def test_these_are_all_operations_and_all_their_floating_point_arguments():
    assert set(OPS) == set(avarc_kernels.__all__) - {"flash_missing", "triton_missing"}
    integers = {"target_M", "row_P"}
    for op in OPS:
        parameters = inspect.signature(getattr(avarc_kernels, op)).parameters.values()
        tensors = {p.name for p in parameters if "Tensor" in str(p.annotation)} - integers
        assert {name for of_op, name in DIFFERENTIABLE if of_op == op} == tensors


@pytest.mark.parametrize(("op", "argument"), DIFFERENTIABLE)
def test_triton_rejects_every_input_that_requires_gradients(triton_device, op, argument):
    args = arguments(2, triton_device)[op]
    args[argument].requires_grad_()
    with pytest.raises(ValueError, match=r"'triton' computes no gradients.*backend='torch'.*torch\.no_grad\(\)"):
        call(op, args, "triton")
    with torch.no_grad():
        call(op, args, "triton")
    with torch.inference_mode():
        call(op, args, "triton")


@pytest.mark.parametrize("argument", ["x_MC", "weight_FC", "bias_F"])
def test_cublaslt_rejects_inputs_that_require_gradients(argument):
    args = arguments(2)["linear_gelu"]
    args[argument].requires_grad_()
    with pytest.raises(ValueError, match="'cublaslt' computes no gradients"):
        call("linear_gelu", args, "cublaslt")


@pytest.mark.parametrize(("op", "argument"), [(op, name) for op, name in DIFFERENTIABLE if op != "nearest_code"])
def test_the_torch_backend_computes_gradients(op, argument):
    args = arguments(2)[op]
    args[argument].requires_grad_()
    result = call(op, args, "torch")
    differentiable = result if isinstance(result, torch.Tensor) else result[-1]  # of a pair, the second
    differentiable.square().sum().backward()
    assert bool(args[argument].grad.any())


@pytest.mark.parametrize("op", OPS)
def test_nothing_in_is_nothing_out(float32_target, op):
    result = call(op, arguments(0, float32_target.device)[op], float32_target.backend)
    assert all(len(out) == 0 for out in (result if isinstance(result, tuple) else (result,)))


@pytest.mark.parametrize("op", OPS)
def test_kernels_are_launched_on_the_device_of_their_input(monkeypatch, triton_device, op):
    places, device_of = [], torch.cuda.device_of

    def recorded(x):
        places.append(x.device)
        return device_of(x)

    monkeypatch.setattr(torch.cuda, "device_of", recorded)
    call(op, arguments(2, triton_device)[op], "triton")
    assert {place.type for place in places} == {torch.device(triton_device).type}


@pytest.mark.parametrize("op", OPS)
def test_unknown_backends_are_rejected(op):
    with pytest.raises(ValueError, match="unknown backend 'auto': the choices are torch, "):
        call(op, arguments(1)[op], "auto")


@pytest.mark.parametrize("op", OPS)
def test_triton_is_rejected_where_it_cannot_run(monkeypatch, op):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="'triton' cannot run: "):
        call(op, arguments(1)[op], "triton")


def transposed(x):
    """The same values with rows that are not contiguous."""
    return x.mT.contiguous().mT


@pytest.mark.parametrize(
    ("op", "argument", "change"),
    [
        ("linear_log_prob", "hidden_MC", transposed),
        ("linear_log_prob", "weight_VC", transposed),
        ("linear_log_prob", "weight_VC", torch.Tensor.double),
        ("block_causal_attention", "q_PHTD", transposed),
        ("block_causal_attention", "k_PHSD", transposed),
        ("block_causal_attention", "v_PHSD", transposed),
        ("adaln", "x_PTC", transposed),
        ("adaln", "scale_NC", transposed),
        ("gated_residual_adaln", "y_PTC", transposed),
        ("nearest_code", "z_NZ", transposed),
        ("nearest_code", "z_NZ", torch.Tensor.double),
        ("linear_gelu", "x_MC", transposed),
        ("quantize_rows", "x_MC", transposed),
        ("causal_attention", "q_PHTD", transposed),
        ("causal_attention", "k_PGSD", transposed),
        ("causal_attention", "v_PGSD", transposed),
        ("residual_rms_norm", "x_MC", transposed),
        ("residual_rms_norm", "y_MC", transposed),
        ("head_layer_norm", "x_PTHD", transposed),
        ("rotary", "x_PTHD", transposed),
        ("swiglu", "a_MF", transposed),
    ],
)
def test_strides_and_dtypes_that_a_kernel_does_not_support_are_rejected(triton_device, op, argument, change):
    args = arguments(4, triton_device)[op]
    args[argument] = change(args[argument])
    with pytest.raises(ValueError, match="triton needs"):
        call(op, args, "triton")


def test_heads_of_more_than_256_channels_are_rejected(triton_device):
    q = torch.zeros(1, 1, 1, 257, device=triton_device)
    with pytest.raises(ValueError, match="triton needs heads of at most 256"):
        avarc_kernels.block_causal_attention(q, q, q, [1], scale=1.0, backend="triton")


def test_matmuls_follow_pytorchs_tf32_setting():
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    try:
        matmul.allow_tf32 = True
        assert [dot_precision(dtype) for dtype in (torch.float32, torch.bfloat16)] == ["tf32", "ieee"]
        matmul.allow_tf32 = False
        assert dot_precision(torch.float32) == "ieee"
    finally:
        matmul.allow_tf32 = before


@pytest.mark.parametrize(
    ("capability", "compiler", "hip", "why"),
    [
        ((9, 0), "/usr/bin/gcc", None, None),
        ((9, 0), None, None, "a C compiler"),
        ((7, 5), "/usr/bin/gcc", None, "8.0, this GPU has 7.5"),
        ((9, 0), "/usr/bin/gcc", "6.0", "an AMD GPU"),
    ],
)
def test_triton_says_why_it_cannot_run_on_a_gpu(monkeypatch, capability, compiler, hip, why):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    dispatch._cannot_compile.cache_clear()
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    monkeypatch.delenv("CC", raising=False)
    said = triton_missing(torch.device("cuda"))
    dispatch._cannot_compile.cache_clear()
    assert said is None if why is None else why in said
