"""`rotary` against its definition in float64. Triton turns 8 heads at once."""

import pytest
import torch

from avarc_kernels import rotary, testing
from avarc_kernels.testing import assert_within, float64_reference


def table(positions, pairs, device):
    angle = 3 * torch.randn(positions, pairs, device=device)
    turned = torch.stack([angle.cos(), angle.sin()], dim=-1)
    turned[0] = 0  # a position that has no place
    return turned


@pytest.mark.parametrize(("H", "D"), [(1, 8), (9, 20), (16, 64)])  # one head; more than a block; two blocks
def test_equals_its_definition(target, H, D):
    backend, device, dtype = target
    torch.manual_seed(D)
    x = torch.randn(2, 5, 3 * H, D, device=device).to(dtype)[:, :, H : 2 * H]  # a view: keys of qkv
    angles = table(5, D // 2, device)
    actual = rotary(x, angles, dtype=torch.float32, backend=backend)
    reference = float64_reference(testing.rotary, x, angles, compute_dtype=torch.float32)
    assert_within(actual, *reference, op="rotary")
    assert not actual[:, 0].any()
    rounded = rotary(x, angles, backend=backend)
    assert rounded.dtype == dtype and rounded.is_contiguous()
    assert_within(rounded, actual.to(dtype), 0, op="rotary, rounded")


def test_sequences_may_have_angles_of_their_own(target):
    backend, device, dtype = target
    torch.manual_seed(0)
    x = torch.randn(3, 5, 9, 20, device=device).to(dtype)
    angles = torch.stack([table(5, 10, device) for _ in x])
    actual = rotary(x, angles, dtype=torch.float32, backend=backend)
    assert_within(actual, *float64_reference(testing.rotary, x, angles, compute_dtype=torch.float32), op="rotary")
    alone = [rotary(x[i : i + 1], angles[i], dtype=torch.float32, backend=backend) for i in range(3)]
    assert torch.equal(actual, torch.cat(alone))


def test_lengths_of_pairs_are_kept(float32_target):
    backend, device, _ = float32_target
    x, angles = torch.randn(1, 4, 2, 12, device=device), table(4, 6, device)[1:]
    turned = rotary(x[:, 1:], angles, backend=backend).unflatten(-1, (-1, 2))
    assert torch.allclose(turned.norm(dim=-1), x[:, 1:].unflatten(-1, (-1, 2)).norm(dim=-1), atol=1e-6)


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        ((1, 2, 3, 8), (2, 4, 3)),
        ((1, 2, 3, 8), (3, 4, 2)),
        ((1, 2, 3, 7), (2, 3, 2)),
        ((3, 2, 3, 8), (2, 2, 4, 2)),
        ((2, 3, 8), (2, 4, 2)),
    ],
)
def test_shapes_that_disagree_are_rejected(x, shape):
    with pytest.raises(ValueError, match="table"):
        rotary(torch.randn(x), torch.randn(shape))
