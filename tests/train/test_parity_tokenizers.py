"""Losses, discriminators and training steps of the tokenizers are those of the reference implementations."""

from __future__ import annotations

import pytest
from conftest import GOLDEN
from train import parity

from avarc_cli.train.discriminators import losses

LOSSES = ("var_vq", "llamagen_vq", "tatitok_cvq", "lpips", "patchgan", "titok_disc", "dino_disc")
STEPS = ("step_llamagen_vq", "step_llamagen_vq_adaptive")


def replayed(name):
    return parity.replay_file(GOLDEN / f"train_{name}_tiny.npz")


@pytest.mark.parametrize("name", LOSSES + STEPS)
def test_everything_is_the_references(name):
    comparisons = replayed(name)
    assert comparisons and not [each for each in comparisons if each.exceeded]


def test_every_number_of_a_step_is_compared():
    compared = {"adaptive_weight", "codebook_loss", "digest", "grad_norm_disc", "grad_norm_gen", "loss_disc"}
    meta, arrays = parity.fill.load_golden(GOLDEN / "train_step_llamagen_vq_tiny.npz")
    names = {each.name for each in parity.compare(meta, arrays, arrays)}
    assert names == compared | {"loss_gen", "running_stats", "tokens"}


def test_a_decay_that_is_too_slow_is_noticed(monkeypatch):
    monkeypatch.setattr(losses, "LECAM_DECAY", 0.9)
    assert [each.name for each in replayed("titok_disc") if each.exceeded] == ["lecam"]
