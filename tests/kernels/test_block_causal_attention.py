"""`block_causal_attention` against masked attention in float64.

Triton's tiles have 32 queries and 32 keys in float32, 128 and 64 in half precision, and 16 each for wide heads.
"""

import pytest
import torch

from avarc_kernels import block_causal_attention, testing
from avarc_kernels.testing import assert_within, float64_reference

OP = "block_causal_attention"


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(
    ("prefix", "ends", "D"),
    [
        (0, [1], 16),  # one query, one key
        (0, [1, 5, 14, 30], 8),  # four segments in one tile; fewer channels than a block
        (32, [32], 16),  # tiles that fit exactly: nothing is masked
        (0, [32, 64], 16),  # a segment ends where tiles do
        (5, [10, 27, 71, 160], 24),  # a tile of queries across segments; the last tile is not full
        (300, [40], 64),  # mostly prefix
    ],
)
def test_equals_masked_attention(target, with_norm, prefix, ends, D):
    backend, device, dtype = target
    torch.manual_seed(D)
    new, P, H = ends[-1], 2, 3
    q = torch.randn(P, new, 3, H, D, device=device).to(dtype)[:, :, 1].transpose(1, 2)  # views of qkv
    cache = 2 * torch.randn(2, P, H, prefix + new + 7, D, device=device).to(dtype)  # longer than its contents
    k, v = cache[:, :, :, : prefix + new]
    q[0, 0, -1], q[1] = 0, q[1] / 64  # of norm 0, and below 1
    k[0] /= 64
    k[1, 1, -1] *= 20  # the largest product comes last
    gain = torch.tensor([1.0, 10.0, 100.0], device=device) if with_norm else None
    actual = block_causal_attention(q, k, v, ends, scale=0.7, gain_H=gain, backend=backend)
    assert actual.dtype == dtype
    assert_within(actual, *float64_reference(testing.block_causal_attention, q, k, v, ends, 0.7, gain), op=OP)


@pytest.mark.parametrize("offset", [-4800.0, 4800.0])  # exp of either is 0 or infinite in float32
def test_a_large_common_offset_of_the_products_cancels(float32_target, offset):
    backend, device, _ = float32_target
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 40, 16, device=device)
    q[:], q[..., 0] = 0, 1  # products are the keys' first channel, exactly: only the softmax can lose digits
    k += offset
    k[..., -1, 0] += 5  # the largest comes last, so what came before is rescaled
    actual = block_causal_attention(q, k, v, [3, 40], scale=1.0, backend=backend)
    assert_within(actual, *float64_reference(testing.block_causal_attention, q, k, v, [3, 40], 1.0), op=OP)


@pytest.mark.parametrize("D", [65, 130])  # wide heads have tiles of their own
def test_wide_heads(triton_device, D):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 20, D, device=triton_device)
    actual = block_causal_attention(q, k, v, [3, 20], scale=0.1, backend="triton")
    assert_within(actual, *float64_reference(testing.block_causal_attention, q, k, v, [3, 20], 0.1), op=OP)


@pytest.mark.parametrize("ends", [[], [3], [5, 4], [4, 4, 6], [7], [0, 6], [-1, 6]])
def test_ends_that_do_not_cover_the_new_positions_are_rejected(ends):
    q = torch.randn(1, 1, 6, 4)
    with pytest.raises(ValueError, match="segment ends"):
        block_causal_attention(q, q, q, ends, scale=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_PHSD": torch.randn(1, 2, 6, 5)}, "keys"),
        ({"v_PHSD": torch.randn(1, 2, 7, 4)}, "values"),
        ({"v_PHSD": torch.randn(1, 2, 6, 4).double()}, "float64"),
        ({"scale": 0.0}, "not positive"),
        ({"gain_H": torch.ones(3)}, "gains"),
    ],
)
def test_arguments_that_disagree_are_rejected(change, message):
    q = torch.randn(1, 2, 6, 4)
    args = {"q_PHTD": q, "k_PHSD": q, "v_PHSD": q, "ends": [6], "scale": 1.0} | change
    with pytest.raises(ValueError, match=message):
        block_causal_attention(**args)


def test_gradients_are_those_of_masked_attention():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, length, 8, dtype=torch.float64, requires_grad=True) for length in (14, 19, 19)]
    found = [
        torch.autograd.grad(attend(*inputs, (1, 5, 14), **options).square().sum(), inputs)
        for attend, options in (
            (block_causal_attention, {"scale": 0.7}),
            (lambda q, k, v, ends: testing.block_causal_attention(q, k, v, ends, 0.7, None), {}),
        )
    ]
    for ours, expected in zip(*found, strict=True):
        assert torch.allclose(ours, expected, atol=1e-12)
