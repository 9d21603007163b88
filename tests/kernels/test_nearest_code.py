"""`nearest_code` against the argmin of distances in float64.

Triton's tiles have 64 vectors and 64 entries; the torch backend takes chunks of `CHUNK_ROWS` vectors.
"""

import pytest
import torch

from avarc_kernels import nearest_code, testing
from avarc_kernels.nearest_code import CHUNK_ROWS
from avarc_kernels.testing import assert_within


def assert_nearest(index, z, codebook):
    expected = testing.squared_distance(z.double(), codebook.double()).argmin(1)
    assert_within(index, expected, 0, op="nearest_code")


@pytest.mark.parametrize(("N", "V", "Z"), [(1, 7, 4), (64, 64, 32), (65, 130, 17), (130, 200, 8)])
def test_is_the_argmin_of_distances(float32_target, N, V, Z):
    backend, device, _ = float32_target
    torch.manual_seed(V)
    z = torch.randn(N, Z + 1, device=device)[:, 1:]
    codebook = torch.randn(V, Z + 2, device=device)[:, :Z]
    assert_nearest(nearest_code(z, codebook, backend=backend), z, codebook)


@pytest.mark.parametrize("N", [0, 1, CHUNK_ROWS, 2 * CHUNK_ROWS + 1])
def test_the_torch_backend_joins_its_chunks(N):
    torch.manual_seed(0)
    z, codebook = torch.randn(N, 4), torch.randn(30, 4)
    assert_nearest(nearest_code(z, codebook), z, codebook)


def test_a_vector_alone_has_the_code_that_it_has_among_others(float32_target):
    # The second entry is further away by less than float32 rounding, in directions that the order of the sums decides.
    backend, device, _ = float32_target
    torch.manual_seed(0)
    z = torch.randn(200, 32, device=device)
    codebook = torch.cat([z, z + 1e-4 * torch.randn_like(z)])
    together = nearest_code(z, codebook, backend=backend)
    assert together[::4].tolist() == [nearest_code(row[None], codebook, backend=backend).item() for row in z[::4]]


def test_takes_the_first_of_equal_entries_within_and_across_tiles(float32_target):
    backend, device, _ = float32_target
    codebook = torch.full((200, 4), 9.0, device=device)
    codebook[[3, 5, 70, 199]] = 1.0
    z = torch.ones(3, 4, device=device)
    assert nearest_code(z, codebook, backend=backend).tolist() == [3, 3, 3]
    assert nearest_code(z, codebook[4:], backend=backend).tolist() == [1, 1, 1]
    assert nearest_code(z, codebook[64:], backend=backend).tolist() == [6, 6, 6]


def test_rounds_as_the_published_tokenizers_do(float32_target):
    # |z|^2 + |e|^2 is 1e8 in float32 for both entries: the first one wins, although it is further away.
    backend, device, _ = float32_target
    z, codebook = torch.tensor([[1e4, 0.0]], device=device), torch.tensor([[0.0, 1.0], [0.0, 0.0]], device=device)
    assert nearest_code(z, codebook, backend=backend).tolist() == [0]


def test_channels_that_disagree_are_rejected():
    with pytest.raises(ValueError, match="channels"):
        nearest_code(torch.randn(2, 3), torch.randn(5, 2))
