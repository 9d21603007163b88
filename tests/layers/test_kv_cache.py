"""The KV cache: appended, limited, selected and in place it gives attention what it was given; memory is reused."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avarc_cli.layers.kv_cache import KVCache, Workspace
from avarc_cli.models.var.likelihood import VARLikelihood

CPU = torch.device("cpu")
LAYERS, PAIRS, HEADS, WIDTH = 2, 3, 2, 4


def new_positions(count, seed=0, pairs=PAIRS):
    """Keys and values of `count` new positions, (layers, 2, P, H, count, D)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LAYERS, 2, pairs, HEADS, count, WIDTH, generator=generator)


def append(cache, kv):
    """One forward pass: what attention reads, (layers, 2, P, H, S, D)."""
    return torch.stack([torch.stack(cache.append(layer, *kv[layer])) for layer in range(LAYERS)])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from([0, 3, 16]))
def test_a_pass_reads_what_all_passes_appended(counts, capacity):
    cache, whole = KVCache(LAYERS, capacity=capacity), new_positions(0)
    for seed, count in enumerate(counts):
        kv = new_positions(count, seed)
        whole = torch.cat([whole, kv], 4)
        assert torch.equal(append(cache, kv), whole)
        assert cache.length == whole.shape[4]


@given(st.integers(0, 3), st.integers(1, 4), st.integers(0, 8), st.sampled_from([0, 16]))
def test_the_limit_bounds_what_is_stored_not_what_is_read(before, count, limit, capacity):
    cache = KVCache(LAYERS, capacity=capacity)
    first, second, third = new_positions(before, 0), new_positions(count, 1), new_positions(1, 2)
    if before:
        append(cache, first)
    cache.limit = limit
    both = torch.cat([first, second], 4)
    assert torch.equal(append(cache, second), both)
    assert cache.length == min(limit, before + count)
    cache.limit = None
    assert torch.equal(append(cache, third), torch.cat([both[..., : min(limit, before + count), :], third], 4))


def test_selected_sequences_are_a_copy():
    cache, kv = KVCache(LAYERS), new_positions(5)
    append(cache, kv)
    rows = torch.tensor([2, 0, 2])
    selected, shorter = cache.select(rows), cache.select(rows, 3)
    append(cache, new_positions(1, 1))
    more = new_positions(2, 2)
    assert torch.equal(append(selected, more), torch.cat([kv[:, :, rows], more], 4))
    assert torch.equal(append(shorter, more), torch.cat([kv[:, :, rows, :, :3], more], 4))
    assert cache.length == 6 and KVCache(LAYERS).select(rows).length == 0
    with pytest.raises(ValueError, match="6 positions are cached, not 7"):
        cache.select(rows, 7)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 4), st.sampled_from([0, 3, None]))
def test_joined_caches_are_one_of_all_their_sequences(pairs, length, limit):
    caches, parts = [], []
    for seed, count in enumerate(pairs):
        cache, kv = KVCache(LAYERS, capacity=6), new_positions(length, seed, count)
        if length:
            append(cache, kv)
        caches.append(cache)
        parts.append(kv)
    joined, whole, rows = KVCache.joined(caches), torch.cat(parts, 2), torch.tensor([sum(pairs) - 1, 0])
    selected, more = joined.select(rows), new_positions(2, 9, sum(pairs))
    joined.limit = limit
    assert torch.equal(append(joined, more), torch.cat([whole, more], 4))
    assert torch.equal(append(selected, more[:, :, rows]), torch.cat([whole, more], 4)[:, :, rows])


def test_caches_of_different_lengths_are_not_joined():
    caches = [KVCache(LAYERS), KVCache(LAYERS)]
    append(caches[0], new_positions(2))
    with pytest.raises(ValueError, match="caches of 2, 0 positions"):
        KVCache.joined(caches)


def test_a_pass_that_fails_leaves_the_cache_as_it_was():
    cache, kv, more = KVCache(LAYERS), new_positions(2), new_positions(3, 1)
    append(cache, kv)
    cache.append(0, *more[0])  # and the second layer never comes
    assert cache.length == 2
    assert torch.equal(append(cache, more), torch.cat([kv, more], 4))


def test_one_buffer_serves_one_batch_after_the_other():
    workspace, addresses = Workspace(), set()
    for pairs in (4, 3, 4):
        cache = KVCache(LAYERS, workspace)
        addresses.add(cache.append(0, *new_positions(5, pairs=pairs)[0])[0].data_ptr())
        cache.append(1, *new_positions(5, pairs=pairs)[1])
        cache = cache.select(torch.tensor([0]))
    assert len(addresses) == 1


def test_memory_in_use_is_not_given_out_again():
    workspace = Workspace()
    first = workspace.empty((4,), torch.float32, CPU).fill_(1)
    second = workspace.empty((4,), torch.float32, CPU).fill_(2)
    assert first.tolist() == [1] * 4 and second.tolist() == [2] * 4


def test_a_buffer_in_use_is_left_to_its_user_and_freed_with_it(monkeypatch):
    made, empty = [], torch.empty

    def seen(*args, **options):
        buffer = empty(*args, **options)
        made.append(weakref.ref(buffer))
        return buffer

    monkeypatch.setattr(torch, "empty", seen)
    workspace = Workspace()
    first = workspace.empty((4,), torch.float32, CPU)
    second = workspace.empty((4,), torch.float32, CPU)
    assert first.data_ptr() != second.data_ptr() and len(made) == 2
    del first
    assert made[0]() is None
    address = second.data_ptr()
    del second
    assert workspace.empty((4,), torch.float32, CPU).data_ptr() == address and len(made) == 2


def test_the_buffer_grows_and_changes_its_dtype():
    workspace = Workspace()
    for shape, dtype in (
        ((2,), torch.float32),
        ((50,), torch.float32),
        ((50,), torch.bfloat16),
        ((3,), torch.bfloat16),
    ):
        tensor = workspace.empty(shape, dtype, CPU)
        assert tensor.shape == shape and tensor.dtype == dtype
        del tensor


def test_a_buffer_that_is_far_too_large_or_not_needed_is_given_up():
    workspace = Workspace()
    size = workspace.empty((800,), torch.float32, CPU).untyped_storage().nbytes()
    assert workspace.empty((101,), torch.float32, CPU).untyped_storage().nbytes() == size
    assert workspace.empty((100,), torch.float32, CPU).untyped_storage().nbytes() == size / 8
    cache = KVCache(LAYERS, workspace)
    cache.limit = 0
    append(cache, new_positions(5))
    assert workspace.empty((50,), torch.float32, CPU).untyped_storage().nbytes() == size / 16


def test_two_states_of_a_model_do_not_disturb_each_other(tiny):
    model = VARLikelihood(tiny.var(), tiny.vqvae().quantize)
    tokens, pair, last = tiny.tokens(), torch.zeros(1, dtype=torch.int64), len(model.segment_ends)
    states = [model.begin(tokens[[i]], pair, pair + i) for i in range(2)]
    expected = [
        model.extend(model.begin(tokens[[i]], pair, pair + i), last, keep_cache_segments=0)[:, model.segment_ends[1] :]
        for i in range(2)
    ]
    for state in states:
        model.extend(state, 2, keep_cache_segments=2)
    for state, rest in zip(states, expected, strict=True):
        assert torch.allclose(model.extend(state, last, keep_cache_segments=0), rest, atol=1e-5)


def test_a_state_whose_cache_was_not_kept_cannot_be_extended(tiny):
    model = VARLikelihood(tiny.var(), tiny.vqvae().quantize)
    pair = torch.zeros(1, dtype=torch.int64)
    state = model.begin(tiny.tokens()[:1], pair, pair)
    model.extend(state, 2, keep_cache_segments=1)
    with pytest.raises(ValueError, match="cannot extend from scale 2 to 3: 1 positions are cached"):
        model.extend(state, 3, keep_cache_segments=0)
    with pytest.raises(ValueError, match="1 positions are cached, not 5"):
        model.fork(state, pair, tiny.tokens()[:1], pair, stop=2)
