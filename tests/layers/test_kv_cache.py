"""The memory that prefixes are written to: one batch at a time, never two at once."""

import torch

from avarc_cli.layers.kv_cache import Workspace
from avarc_cli.models.var.likelihood import VARLikelihood

CPU = torch.device("cpu")


def test_memory_that_was_given_back_is_lent_again_also_for_less():
    workspace = Workspace()
    first = workspace.lend((2, 3, 4), torch.float32, CPU)
    place = first.data_ptr()
    del first
    again = workspace.lend((3, 5), torch.float32, CPU)
    assert again.shape == (3, 5) and again.data_ptr() == place


def test_what_is_held_is_not_lent_twice():
    workspace = Workspace()
    held = workspace.lend((4,), torch.float32, CPU).fill_(1)
    other = workspace.lend((4,), torch.float32, CPU).fill_(2)
    assert held.tolist() == [1] * 4 and other.tolist() == [2] * 4


def test_more_or_another_dtype_is_there_when_it_is_asked_for():
    workspace = Workspace()
    for shape, dtype in (((2,), torch.float32), ((50,), torch.float32), ((50,), torch.bfloat16)):
        lent = workspace.lend(shape, dtype, CPU)
        assert lent.shape == shape and lent.dtype == dtype
        del lent


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
