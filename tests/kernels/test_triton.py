"""Each Triton kernel against its definition in float64, on shapes chosen by the branch that they reach.

The rule: at most twice as far from float64 as PyTorch's own operations in the dtype of the inputs, plus 1e-6. Ops that
promise float32 arithmetic whatever the inputs are held to PyTorch's float32 instead.
"""

import pytest
import torch

from avarc_cli.layers.precision import Int8Linear
from avarc_kernels import (
    adaln,
    block_causal_attention,
    gated_residual_adaln,
    linear_gelu,
    linear_log_prob,
    nearest_code,
    quantize_rows,
)

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter has float32 only")]
DTYPES = [torch.float32, *(pytest.param(dtype, marks=GPU) for dtype in (torch.bfloat16, torch.float16))]


def bounded(ours, definition, *inputs, yardstick=None):
    """Whether `ours` is as near to the definition in float64 as PyTorch's own is, within a factor of 2."""
    truth = definition(*(t.double() for t in inputs))
    plain = definition(*(t.to(yardstick) if yardstick else t for t in inputs))
    assert ours.shape == truth.shape and bool(ours.isfinite().all())
    return (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-6


# linear_log_prob: tiles of 64 rows, 64 columns and 32 channels, twice that in half precision; 512 columns a program


def log_prob_definition(target):
    return lambda hidden, weight, bias: (hidden @ weight.T + bias).log_softmax(-1).gather(-1, target[:, None])[:, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [7, 64, 512, 513, 1100])  # below a tile, a tile, a program, one column and more beyond
@pytest.mark.parametrize(("M", "C"), [(3, 32), (128, 33), (129, 70)])  # rows and channels: below, at, beyond tiles
def test_linear_log_prob(triton_device, dtype, M, V, C):
    torch.manual_seed(M + V)
    hidden = torch.randn(M, C + 5, device=triton_device).to(dtype)[:, :C]  # row stride is not C
    weight = torch.randn(V, C + 3, device=triton_device).to(dtype)[:, 1 : C + 1]  # nor is it in the weight
    bias = torch.randn(V, device=triton_device).to(dtype)
    bias[-1] = 40.0  # the maximum comes last, so every running sum must rescale
    target = torch.randint(V, (M,), device=triton_device)
    target[0], target[-1] = V - 1, 0
    ours = linear_log_prob(hidden, weight, bias, target, backend="triton")
    assert ours.dtype == torch.float32 and bool((ours <= 0).all())
    assert bounded(ours, log_prob_definition(target), hidden, weight, bias, yardstick=torch.float32)


@pytest.mark.parametrize("offset", [-3000.0, 3000.0])  # exp of either is 0 or infinite in float32
def test_linear_log_prob_of_logits_with_a_large_common_offset(triton_device, offset):
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 16, device=triton_device), torch.randn(600, 16, device=triton_device)
    bias, target = torch.full((600,), offset, device=triton_device), torch.randint(600, (9,), device=triton_device)
    ours = linear_log_prob(hidden, weight, bias, target, backend="triton")
    assert bounded(ours, log_prob_definition(target), hidden, weight, bias)


@pytest.mark.parametrize("V", [50, 520])
def test_probabilities_of_all_tokens_sum_to_one(triton_device, V):
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 16, device=triton_device).expand(V, -1), torch.randn(V, 16, device=triton_device)
    tokens = torch.arange(V, device=triton_device)
    ours = linear_log_prob(hidden, weight, None, tokens, backend="triton")
    assert ours.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_certain_token_has_a_log_probability_of_zero_not_above(triton_device):
    hidden, weight = torch.ones(300, 1, device=triton_device), torch.ones(600, 1, device=triton_device)
    weight[7], target = 200.0, torch.full((300,), 7, device=triton_device)
    assert linear_log_prob(hidden, weight, None, target, backend="triton").unique().tolist() == [0.0]


# block_causal_attention: tiles of 32 queries and 32 keys in float32, of 128 and 64 in half precision


def attention_definition(prefix, ends, scale, with_norm):
    def definition(q, k, v, gain):
        if with_norm:
            q, k = q / q.norm(dim=-1, keepdim=True).clamp_min(1e-12), k / k.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            q = q * gain[:, None, None].to(q.dtype)
        segment = torch.tensor([sum(e <= t for e in ends) for t in range(q.shape[2])], device=q.device)
        of_keys = torch.cat([torch.full((prefix,), -1, device=q.device), segment])
        hidden = of_keys[None, :] > segment[:, None]
        return ((q @ k.mT) * scale).masked_fill(hidden, -torch.inf).softmax(-1) @ v

    return definition


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(
    ("prefix", "ends", "D"),
    [
        (0, [1], 16),  # one query, one key
        (0, [1, 5, 14, 30], 8),  # four segments in one tile; channels below a block
        (32, [32], 16),  # tiles that fit exactly: nothing is masked
        (0, [32, 64], 16),  # a segment ends where tiles do
        (5, [10, 27, 71, 160], 24),  # a tile of queries across segments; the rest does not fill one
        (300, [40], 64),  # mostly prefix
    ],
)
def test_block_causal_attention(triton_device, dtype, with_norm, prefix, ends, D):
    torch.manual_seed(D)
    new, P, H = ends[-1], 2, 3
    q = torch.randn(P, new, 3, H, D, device=triton_device).to(dtype)[:, :, 1].transpose(1, 2)  # views of qkv
    cache = 2 * torch.randn(2, P, H, prefix + new + 7, D, device=triton_device).to(dtype)  # longer than what is in it
    k, v = cache[:, :, :, : prefix + new]
    q[0, 0, -1], q[1] = 0, q[1] / 64  # of no length, and shorter than 1
    k[0] /= 64
    k[1, 1, -1] *= 20  # the largest product comes last
    gain = torch.tensor([1.0, 10.0, 100.0], device=triton_device)
    ours = block_causal_attention(q, k, v, ends, scale=0.7, gain_H=gain if with_norm else None, backend="triton")
    assert ours.dtype == dtype
    assert bounded(ours, attention_definition(prefix, ends, 0.7, with_norm), q, k, v, gain)


@pytest.mark.parametrize("offset", [-4800.0, 4800.0])  # exp of either is 0 or infinite in float32
def test_attention_of_products_with_a_large_common_offset(triton_device, offset):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 40, 16, device=triton_device)
    q[:], q[..., 0] = 0, 1  # products are the keys' first channel, exactly: only what follows them can lose digits
    k += offset
    k[..., -1, 0] += 5  # the largest comes last, so what came before is rescaled
    ours = block_causal_attention(q, k, v, [3, 40], scale=1.0, backend="triton")
    assert bounded(ours, attention_definition(0, [3, 40], 1.0, False), q, k, v, q)


@pytest.mark.parametrize("D", [65, 130])  # wide heads have tiles of their own
def test_attention_of_wide_heads(triton_device, D):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 20, D, device=triton_device)
    ours = block_causal_attention(q, k, v, [3, 20], scale=0.1, backend="triton")
    assert bounded(ours, attention_definition(0, [3, 20], 0.1, False), q, k, v, q)


# adaln: one program a row


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [16, 40, 1000])  # a block, beyond one, several warps
@pytest.mark.parametrize("rows", [None, [4, 0, 4]])
def test_adaln_and_the_gated_residual_before_it(triton_device, dtype, C, rows):
    torch.manual_seed(C)
    x = (
        3 * torch.randn(3, 5, C, device=triton_device) + 100
    )  # a mean that variance by E[x^2] - E[x]^2 would not survive
    x[1] = 1e-3 * torch.randn(5, C, device=triton_device)  # and a variance near eps
    y = torch.randn(3, 5, C, device=triton_device).to(dtype)
    table = torch.randn(3 if rows is None else 5, 6, C, device=triton_device)
    row = None if rows is None else torch.tensor(rows, device=triton_device)
    gate, scale, shift = (table[:, i] for i in (1, 3, 5))  # views: the stride of a row is 6 C
    of = slice(None) if row is None else row

    def definition(x, scale, shift):
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return normed * (1 + scale[of][:, None]) + shift[of][:, None]

    ours = adaln(x, scale, shift, row, backend="triton")
    assert bounded(ours, definition, x, scale, shift)
    half = adaln(x, scale, shift, row, dtype=dtype, backend="triton")
    assert half.dtype == dtype and bool((half == ours.to(dtype)).all())

    stream, out = gated_residual_adaln(x, y, gate, scale, shift, row, backend="triton")
    assert bounded(stream, lambda x, y, gate: x + gate[of][:, None] * y, x, y, gate, yardstick=torch.float32)
    assert bounded(out, definition, stream, scale, shift)


def test_adaln_of_rows_without_variance_is_the_shift(triton_device):
    x, shift = torch.full((1, 2, 24), 7.0, device=triton_device), torch.randn(1, 24, device=triton_device)
    assert torch.equal(adaln(x, shift, shift, None, backend="triton"), shift.expand(1, 2, -1))


# nearest_code: tiles of 64 vectors and 64 entries


@pytest.mark.parametrize(("N", "V", "Z"), [(1, 7, 4), (64, 64, 32), (65, 130, 17), (130, 200, 8)])
def test_nearest_code_is_the_argmin_of_distances(triton_device, N, V, Z):
    torch.manual_seed(V)
    z = torch.randn(N, Z + 1, device=triton_device)[:, 1:]
    codebook = torch.randn(V, Z + 2, device=triton_device)[:, :Z]
    expected = (z.double()[:, None] - codebook.double()).square().sum(-1).argmin(1)
    assert nearest_code(z, codebook, backend="triton").tolist() == expected.tolist()


def test_nearest_code_takes_the_first_of_equal_entries_within_and_across_tiles(triton_device):
    codebook = torch.full((200, 4), 9.0, device=triton_device)
    codebook[[3, 5, 70, 199]] = 1.0
    z = torch.ones(3, 4, device=triton_device)
    assert nearest_code(z, codebook, backend="triton").tolist() == [3, 3, 3]
    assert nearest_code(z, codebook[4:], backend="triton").tolist() == [1, 1, 1]
    assert nearest_code(z, codebook[64:], backend="triton").tolist() == [6, 6, 6]


def test_nearest_code_rounds_as_the_published_tokenizers_do(triton_device):
    # |z|^2 + |e|^2 loses the difference between the two entries (1e8 + small), so the first one wins though farther.
    z, codebook = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    z, codebook = z.to(triton_device), codebook.to(triton_device)
    assert nearest_code(z, codebook, backend="torch").tolist() == [0]
    assert nearest_code(z, codebook, backend="triton").tolist() == [0]


# linear_gelu: tiles of 64 x 64 and 32 channels in float32, of 128 x 256 and 64 in half precision; groups of 8 tiles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "F", "C"), [(1, 7, 3), (64, 64, 32), (65, 130, 33), (600, 70, 20)])
def test_linear_gelu(triton_device, dtype, M, F, C):
    torch.manual_seed(M)
    x = torch.randn(M, C + 1, device=triton_device).to(dtype)[:, 1:]
    weight = torch.randn(F, C + 2, device=triton_device).to(dtype)[:, :C]
    bias = torch.randn(F, device=triton_device).to(dtype)
    bias[0], bias[-1] = -300, 300  # gelu is 0 and the identity there
    ours = linear_gelu(x, weight, bias, backend="triton")

    def definition(x, weight, bias):
        return torch.nn.functional.gelu(x @ weight.T + bias, approximate="tanh")

    assert ours.dtype == dtype and bounded(ours, definition, x, weight, bias)


# quantize_rows: one program a row


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [1, 100, 1024])
def test_quantize_rows_to_int8_gives_the_bits_of_its_definition(triton_device, dtype, C):
    torch.manual_seed(C)
    x = (torch.randn(7, C, device=triton_device) * torch.logspace(-6, 4, 7, device=triton_device)[:, None]).to(dtype)
    x[2], x[3, 0] = 0, -1000
    for ours, definition in zip(
        quantize_rows(x, torch.int8, backend="triton"), quantize_rows(x, torch.int8, backend="torch"), strict=True
    ):
        assert torch.equal(ours, definition)


def test_quantize_rows_divides_as_its_definition_does(triton_device):
    # Numbers that are nearly half-way between codes: times a reciprocal, some would round the other way.
    x = torch.cat([torch.tensor([127.0]), torch.arange(127) + 0.5])[None] * torch.linspace(0.1, 0.9, 9)[:, None]
    x = x.to(triton_device)
    ours, definition = (quantize_rows(x, torch.int8, backend=backend)[0] for backend in ("triton", "torch"))
    assert torch.equal(ours, definition)


def test_quantize_rows_rounds_halves_to_even(triton_device):
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, 63.5, -126.5]], device=triton_device)
    assert quantize_rows(x, torch.int8, backend="triton")[0].tolist() == [[127, 0, 2, -2, 64, -126]]


def test_quantize_rows_to_float8(triton_device):
    torch.manual_seed(0)
    x = torch.randn(7, 100, device=triton_device)
    x[2] = 0
    q, scale = quantize_rows(x, torch.float8_e4m3fn, backend="triton")
    expected, expected_scale = quantize_rows(x, torch.float8_e4m3fn, backend="torch")
    assert torch.equal(scale, expected_scale)
    if triton_device == "cuda":  # the interpreter's own conversion to float8 does not round as a GPU's does
        assert torch.equal(q.float(), expected.float())


def test_8_bit_linears_quantise_their_input_through_the_kernel_to_the_same_bits(triton_device):
    torch.manual_seed(0)
    layer = Int8Linear(torch.nn.Linear(64, 96, device=triton_device).requires_grad_(False), torch.float32)
    x = torch.randn(20, 64, device=triton_device)
    expected = layer(x)
    layer.kernels = "triton"
    assert torch.equal(layer(x), expected)


# what all have in common


def calls(n, device):
    """Each op on n rows of everything."""
    x, weight = torch.randn(n, 16, device=device), torch.randn(5, 16, device=device)
    stream, table = torch.randn(n, 2, 16, device=device), torch.randn(n, 16, device=device)
    heads = torch.randn(n, 2, 3, 16, device=device)
    return {
        "linear_log_prob": linear_log_prob(
            x, weight, None, torch.zeros(n, dtype=torch.int64, device=device), backend="triton"
        ),
        "block_causal_attention": block_causal_attention(heads, heads, heads, [3], scale=1.0, backend="triton"),
        "adaln": adaln(stream, table, table, None, backend="triton"),
        "gated_residual_adaln": gated_residual_adaln(stream, stream, table, table, table, None, backend="triton")[1],
        "nearest_code": nearest_code(x, weight, backend="triton"),
        "linear_gelu": linear_gelu(x, weight, weight[:, 0], backend="triton"),
        "quantize_rows": quantize_rows(x, torch.int8, backend="triton")[0],
    }


def test_nothing_in_is_nothing_out(triton_device):
    assert all(len(out) == 0 for out in calls(0, triton_device).values())


def test_each_row_is_on_its_own(triton_device):
    """A row's bits do not depend on how many others are computed with it."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(150, 16, device=triton_device), torch.randn(600, 16, device=triton_device)
    target = torch.randint(600, (150,), device=triton_device)
    of_all = linear_log_prob(hidden, weight, None, target, backend="triton")
    assert torch.equal(of_all[70:72], linear_log_prob(hidden[70:72], weight, None, target[70:72], backend="triton"))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: linear_log_prob(x.T, x.T, None, torch.zeros(16, dtype=torch.int64), backend="triton"),
        lambda x: linear_log_prob(x, x.double(), None, torch.zeros(16, dtype=torch.int64), backend="triton"),
        lambda x: block_causal_attention(
            x.T[None, None], x[None, None], x[None, None], [16], scale=1, backend="triton"
        ),
        lambda x: block_causal_attention(
            *torch.zeros(3, 1, 1, 1, 257, device=x.device), [1], scale=1, backend="triton"
        ),
        lambda x: adaln(x.T[None], x[:1], x[:1], None, backend="triton"),
        lambda x: adaln(x[None], x.T[:1], x[:1], None, backend="triton"),
        lambda x: gated_residual_adaln(x[None], x.T[None], x[:1], x[:1], x[:1], None, backend="triton"),
        lambda x: nearest_code(x.T, x, backend="triton"),
        lambda x: nearest_code(x.double(), x.double(), backend="triton"),
        lambda x: linear_gelu(x.T, x, x[0], backend="triton"),
        lambda x: quantize_rows(x.T, torch.int8, backend="triton"),
    ],
)
def test_what_a_kernel_cannot_read_is_refused(triton_device, call):
    with pytest.raises(ValueError, match="triton wants"):
        call(torch.randn(16, 16, device=triton_device))
