"""Pieces of work on several threads: each is done once, in the same bits, and what goes wrong is raised."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from avarc_cli.layers import convolution, winograd
from avarc_cli.layers.convolution import MatmulConv
from avarc_cli.layers.threads import share
from avarc_cli.layers.winograd import WinogradConv


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_every_piece_is_done_once_on_one_thread_each(threads, count):
    done: list[tuple[int, int, bool]] = []

    def work(pieces):
        for piece in pieces:
            done.append((piece, torch.get_num_threads(), torch.is_grad_enabled()))

    with torch.no_grad():
        share(work, range(count))
    assert sorted(done) == [(piece, 1, False) for piece in range(count)]
    assert torch.get_num_threads() == threads


def test_an_error_of_a_thread_is_raised_and_the_next_call_works(threads):
    def fail(pieces):
        for piece in pieces:
            if piece == 3:
                raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        share(fail, range(8))
    done: list[int] = []
    share(lambda pieces: done.extend(pieces), range(8))
    assert sorted(done) == list(range(8))


@torch.inference_mode()
def test_a_convolutions_bits_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(winograd, "STRIP", 2**18)  # several strips
    monkeypatch.setattr(convolution, "STRIP", 2**18)
    torch.manual_seed(0)
    before, conv, x = torch.get_num_threads(), nn.Conv2d(128, 128, 3, padding=1), torch.randn(3, 128, 32, 32)
    outputs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        outputs.append([made(x) for made in (WinogradConv(conv), MatmulConv(conv))])
    torch.set_num_threads(before)
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))
