"""The benchmark of training steps: that both loops train the same, and that it accounts for all of the time."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import training
from photos import write_photos

FAMILIES = pytest.mark.parametrize("family", training.READS)


@FAMILIES
def test_the_plain_loop_learns_what_our_trainer_does(family):
    model, turns = training.take_turns(family, "tiny", 3)
    weights, steps = model.network.state_dict(), training.WARM_UP + 3
    for name, loop in turns.loops.items():
        assert len(turns.seconds[name]) == len(turns.seconds[training.OURS]) == steps
        for key, average in loop.average.items():
            assert torch.allclose(weights[key], average, atol=2e-6), key
            assert not torch.equal(average, loop.network.weights[key]), f"{key} was not trained"


@FAMILIES
def test_the_parts_of_a_step_are_all_of_it(family, tmp_path):
    write_photos(tmp_path, 1, side=12, seed=0)
    shares = training.shares(family, "tiny", 3, tmp_path)
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
    assert {"images", "encoding", "forward", "backward", "optimizer", "average"} < shares.keys()
