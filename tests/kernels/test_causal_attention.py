"""`causal_attention` against masked attention in float64. Triton's tiles have 32 queries and 32 keys in float32."""

import pytest
import torch

from avarc_kernels import causal_attention, testing
from avarc_kernels.testing import assert_within, float64_reference


@pytest.mark.parametrize(
    ("prefix", "new", "H", "G", "D"),
    [
        (0, 1, 1, 1, 16),  # one query, one key
        (0, 33, 4, 4, 16),  # a tile and one query; no grouping
        (0, 32, 4, 2, 24),  # a tile that fits exactly; two queries read one head
        (7, 16, 6, 2, 16),  # after a prefix
        (64, 1, 4, 1, 32),  # one new position after whole tiles; all queries read one head
        (40, 70, 3, 1, 100),  # wide heads, as GPT-3B's
    ],
)
def test_equals_masked_attention(target, prefix, new, H, G, D):
    backend, device, dtype = target
    torch.manual_seed(new)
    q = torch.randn(2, new, H, D, device=device).to(dtype).transpose(1, 2)
    cache = 2 * torch.randn(2, 2, G, prefix + new + 3, D, device=device).to(dtype)  # longer than its contents
    k, v = cache[:, :, :, : prefix + new]
    q[0, 0, 0] = 0  # a query of zeros sees every key alike
    actual = causal_attention(q, k, v, scale=0.5, backend=backend)
    assert actual.dtype == dtype
    reference = float64_reference(testing.causal_attention, q, k, v, 0.5)
    assert_within(actual, *reference, op="causal_attention")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_PGSD": torch.randn(1, 2, 6, 5)}, "keys"),
        ({"v_PGSD": torch.randn(1, 2, 7, 4)}, "values"),
        ({"q_PHTD": torch.randn(1, 3, 6, 4)}, "multiple of the key heads"),
        ({"q_PHTD": torch.randn(1, 4, 7, 4)}, "at least as many keys"),
        ({"v_PGSD": torch.randn(1, 2, 6, 4).double()}, "float64"),
        ({"scale": -1.0}, "not positive"),
    ],
)
def test_arguments_that_disagree_are_rejected(change, message):
    k = torch.randn(1, 2, 6, 4)
    args = {"q_PHTD": torch.randn(1, 4, 6, 4), "k_PGSD": k, "v_PGSD": k, "scale": 1.0} | change
    with pytest.raises(ValueError, match=message):
        causal_attention(**args)
