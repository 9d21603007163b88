"""Quantized linears: as exact as their numbers allow, row by row, and safe where sums could overflow."""

from dataclasses import replace

import pytest
import torch
from conftest import load_golden

from avarc_cli.errors import UsageError
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.linears import Float8Linear, Int8Linear, Int8LinearCPU, Int16Linear
from avarc_cli.layers.precision import PRECISIONS, find
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_kernels.int16_linear import missing as int16_missing
from avarc_kernels.linear import onednn_missing

CPU = torch.device("cpu")
HAS_INT16 = int16_missing() is None
KINDS = [
    (Int8LinearCPU, torch.float32, 1 / 63),
    (Int8Linear, torch.float32, 1 / 127),
    (Float8Linear, torch.bfloat16, 1 / 8),
    *([(Int16Linear, torch.float32, 1 / 4095)] if HAS_INT16 else []),
]
LOW = ["bf16", "fp16", *(["int16"] if HAS_INT16 else []), "int8", "fp8"]


def layer(channels_in=64, channels_out=96, bias=True):
    torch.manual_seed(0)
    return torch.nn.Linear(channels_in, channels_out, bias=bias).requires_grad_(False)


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0].__name__)
def kind(request):
    return request.param


def exact_bound(plain, x, step):
    """|y - y'| at most: half a step of each weight and each input, relative to the largest of its row, and bf16."""
    width = x.abs().amax(-1, keepdim=True) * plain.weight.abs().amax(1)
    return step * 1.5 * plain.in_features * width + 0.01 * (plain(x).abs() + 1)


@pytest.mark.parametrize("shape", [(5, 7, 64), (1, 64), (20, 64), (0, 64)])
def test_a_quantized_linear_is_within_its_steps_of_the_exact_one(kind, shape):
    make, dtype, step = kind
    plain, x = layer(), 3 * torch.randn(*shape) + 1
    y = make(plain, dtype)(x.to(dtype)).float()
    assert y.shape == (*shape[:-1], 96)
    assert bool(((y - plain(x)).abs() <= exact_bound(plain, x, step)).all())
    if x.numel():
        assert float((y - plain(x)).norm() / plain(x).norm()) < 0.05  # errors of channels average out


def test_a_row_does_not_depend_on_the_rows_beside_it(kind):
    make, dtype, _ = kind
    x = torch.randn(24, 64, dtype=dtype)
    x[3] *= 1000
    whole, alone = make(layer(), dtype)(x), make(layer(), dtype)(x[4:5])
    assert torch.equal(whole[4:5], alone)


def test_a_bias_from_outside_takes_the_place_of_none(kind):
    make, dtype, _ = kind
    x, bias = torch.randn(3, 64, dtype=dtype), torch.linspace(-2, 2, 96)
    without = make(layer(bias=False), dtype)
    assert torch.allclose(without(x, bias.to(dtype)).float(), without(x).float() + bias, atol=0.05)


@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
def test_constant_rows_and_zeros_are_no_special_case(kind, value):
    make, dtype, _ = kind
    plain, x = layer(), torch.full((2, 64), value)
    y = make(plain, dtype)(x.to(dtype)).float()
    assert bool(y.isfinite().all())
    assert float((y - plain(x)).abs().max()) <= 0.1 * float(plain(x).abs().max()) + 0.01


def test_the_largest_bytes_do_not_overflow():
    """Without VNNI, x86 adds two byte products in 16 bits: 255 * 127 * 2 is too much, silently."""
    plain = torch.nn.Linear(64, 16, bias=False).requires_grad_(False)
    plain.weight.fill_(1.0)
    x = torch.cat([torch.zeros(1, 1), torch.ones(1, 63)], 1)  # one zero: the bytes of the others are 255
    assert torch.allclose(Int8LinearCPU(plain, torch.float32)(x), plain(x), rtol=1e-5)
    assert int(Int8LinearCPU(plain, torch.float32).sum_N[0].round()) == 64


HALF = replace(PRECISIONS["int8"], attention=torch.bfloat16)  # int8 as a CPU with bfloat16 products computes it


@pytest.mark.parametrize("precision", [PRECISIONS[n] for n in LOW] + [HALF])
def test_scores_in_a_low_precision_are_close_and_valid(precision):
    golden = load_golden("var_tiny")
    classes = torch.from_numpy(golden.arrays["classes"]).long()
    model = VARLikelihood(golden.var().set_precision(precision), golden.vqvae().quantize)
    state = model.begin(golden.tokens()[:1], torch.zeros_like(classes), classes)
    ours = torch.cat([model.extend(state, stop, keep_cache_segments=stop) for stop in (2, 4)], 1)
    error = (ours - torch.from_numpy(golden.arrays["token_log_prob"][0])).abs()
    assert bool((ours <= 0).all())
    assert float(error.mean()) < 0.1
    assert bool((error > 0).any()), "it did not run in that precision"


def test_quantized_linears_keep_the_weight_that_class_banks_change():
    var = load_golden("var_tiny").var()
    before = {k: v.clone() for k, v in var.state_dict().items()}
    after = var.set_precision(PRECISIONS["int8"]).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


@pytest.mark.parametrize(("name", "why"), [("int4", "there are fp32"), ("fp8", "CUDA"), ("tf32", "CUDA")])
def test_an_unavailable_precision_is_refused(name, why):
    with pytest.raises(UsageError) as refused:
        find(name, CPU)
    assert why in refused.value.why


def test_available_precisions_of_a_cpu():
    assert precisions.available(CPU) == ("fp32", *LOW[:-1])


@pytest.mark.parametrize("why_not", [None, "there is no C compiler"])
def test_a_cascade_without_bf16_begins_in_int16_if_it_can_be_compiled(monkeypatch, why_not):
    monkeypatch.setattr(precisions, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(precisions, "int16_missing", lambda: why_not)
    assert precisions.resolve("cascade", CPU) == ("int8+fp32" if why_not else "int16+fp32")
    if why_not:
        with pytest.raises(UsageError, match="int16 is not available on cpu") as refused:
            find("int16", CPU)
        assert refused.value.why == why_not


@pytest.mark.parametrize(
    ("cpu", "library"),
    [
        ({"avx512_f": True, "cpu_name": "AMD EPYC"}, "onednn"),
        ({"avx512_f": True, "cpu_name": "Intel(R) Xeon(R)"}, "torch"),
        ({"avx512_f": False, "cpu_name": "AMD EPYC"}, "torch"),
        ({"cpu_name": "arm"}, "torch"),
    ],
)
def test_scoring_multiplies_by_the_library_that_is_faster_on_the_cpu_and_says_so(monkeypatch, cpu, library):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    x = torch.zeros(2, 3)
    assert precisions.product_backend(x) == "torch"  # outside inference mode, as with gradients
    with torch.inference_mode():
        assert precisions.product_backend(x) == library
        half = x.bfloat16()
        assert precisions.product_backend(half) == ("torch" if onednn_missing(half) else "onednn")
    said = [precisions.arithmetic(PRECISIONS["fp32"], CPU, uses_library=uses) for uses in (True, False)]
    assert ["oneDNN" in words for words in said] == [library == "onednn", False]


def test_class_modulation_does_not_depend_on_earlier_requests():
    golden = load_golden("var_tiny")
    first, second = (VARLikelihood(golden.var(), golden.vqvae().quantize).classes for _ in range(2))
    ids = torch.tensor([2, 0])
    with torch.inference_mode():
        second.of(torch.tensor([1]))
        a, b = first.of(ids), second.of(ids)
    assert torch.equal(a.blocks[0][a.row_P], b.blocks[0][b.row_P])
    assert torch.allclose(a.head[a.row_P], golden.var().condition(ids).head, atol=1e-6)
