"""What a recipe says of a step: the corners that the golden files do not reach."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN
from golden import fill
from train import parity_generators

from avarc_cli.errors import UsageError
from avarc_cli.layers.rows import Rows
from avarc_cli.models.llamagen.likelihood import LlamaGenLikelihood
from avarc_cli.models.var.initialize import initialize
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.network import VAR
from avarc_cli.objective import Draw, Objective, Stage
from avarc_cli.train.generator import prepare, seed_dropout
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.update import average, parameter_groups, update

PLAIN = Recipe(steps=100, batch_size=1, lr=1.0)


@pytest.mark.parametrize("name", ["cos", "lin", "lin0", "lin00", "exp", "lin0.4", "lin1", "cosine", "constant"])
def test_schedules_start_at_the_peak_and_never_rise_after_the_warm_up(name):
    recipe = replace(PLAIN, schedule=name, warmup=0, final=0.1)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == 1.0 and all(a >= b for a, b in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx({"lin1": 0.55, "constant": 1.0}.get(name, 0.1), abs=3e-4)


def test_a_length_below_one_is_a_fraction_of_the_steps():
    named = replace(PLAIN, schedule="lin0", warmup=0.2)
    assert [named.rate(s) for s in range(100)] == [replace(named, warmup=20).rate(s) for s in range(100)]
    assert named.rate(10) == pytest.approx(0.5025) and named.rate(20) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "lin2"},
        {"schedule": "linear"},
        {"schedule": "lin-0.1"},
        {"decayed": "all"},
        {"ema_start": "late"},
        {"drop_path": 1.0},
        {"class_dropout": 1.0},
        {"anneal": (0.8, 0.5)},
        {"warmup": float("nan")},
        {"smoothing": 1.5},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        replace(PLAIN, **wrong)


def test_a_checkpoint_of_the_defaults_says_what_it_always_said():
    said = {*"steps batch_size lr warmup hold final weight_decay betas clip ema_decay save_every seed".split()}
    assert set(PLAIN.identity()) == said and PLAIN.identity()["betas"] == [0.9, 0.95]
    assert set(replace(PLAIN, schedule="cos", anneal=(0.1, 0.2)).identity()) == said | {"schedule", "anneal"}


def test_weights_that_are_not_averaged_are_the_last_ones():
    network = torch.nn.Linear(3, 2)
    averaged = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    average(averaged, network, replace(PLAIN, ema_decay=None).averaging(0))
    assert torch.equal(averaged["weight"], network.weight)
    kept = {start: replace(PLAIN, ema_start=start).averaging(2) for start in ("tensorflow", "copy", "half", "none")}
    assert kept == {"tensorflow": 3 / 12, "copy": 3 / 12, "half": 2 / 11, "none": 0.999}


def stages(**more):
    recipe = replace(PLAIN, warmup=4, progressive=0.5, progressive_ramp=5, **more)
    return [recipe.objective(step, 4).stage for step in range(100)]


def test_progressive_training_adds_a_scale_at_a_time_and_ends_as_usual():
    found = stages()
    assert found[0] == Stage(2, 1.0) and found[60] is None and found[50] is None
    came = next(step for step, stage in enumerate(found) if stage.segments == 3)
    assert [stage.newest for stage in found[came : came + 6]] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert stages(progressive_first=0)[0] == Stage(1, 1.0), "the first scale alone, which VAR's code cannot train"
    with pytest.raises(UsageError, match="progressive_first is 4"):
        stages(progressive_first=4)


def test_a_model_without_scales_refuses_progressive_training_and_drop_path():
    asked = replace(PLAIN, drop_path=0.1).objective(0)
    asked.check(VARLikelihood.trained_with, "a VAR")
    with pytest.raises(UsageError, match="drop_path is not for a LlamaGen"):
        asked.check(LlamaGenLikelihood.trained_with, "a LlamaGen")
    with pytest.raises(UsageError, match="progressive training is not for a LlamaGen"):
        Objective(stage=Stage(1, 1.0)).check(LlamaGenLikelihood.trained_with, "a LlamaGen")


@torch.inference_mode()
def test_the_coarsest_scales_alone_are_scored_as_with_the_others(tiny):
    model = VARLikelihood(tiny.var(), tiny.vqvae().quantize)
    tokens, classes = tiny.tokens(), torch.zeros(len(tiny.tokens()), dtype=torch.int64)
    log_prob = model.token_log_prob(tokens, classes)
    for scales in (1, 2):
        end, total = model.segment_ends[scales - 1], model.segment_ends[-1]
        loss = model.training_loss(tokens, classes, Objective(stage=Stage(scales, 1.0)), Draw())
        assert loss.mean.item() == pytest.approx(-log_prob[:, :end].sum(1).mean().item() / total, abs=1e-6)


def test_drop_path_rises_over_the_blocks_and_keeps_the_mean(tiny):
    model = VARLikelihood(tiny.var(), tiny.vqvae().quantize)
    generator = torch.Generator().manual_seed(0)
    kept = model.draw(4000, Objective(drop_path=0.4), generator).kept_D2B.float().mean((1, 2))
    expected = 1 - torch.linspace(0, 0.4, len(kept))
    assert torch.allclose(kept, expected, atol=0.02) and kept[0] == 1
    assert model.draw(4, Objective(), generator) == Draw()


def test_a_skipped_update_leaves_weights_and_moments():
    network = torch.nn.Linear(2, 1)
    recipe = replace(PLAIN, skip_norm=1e-9, skip_from=1, decayed="published")
    optimizer = torch.optim.AdamW(parameter_groups(network, recipe))
    made = []
    for step in range(2):
        network(torch.ones(1, 2)).sum().backward()
        before = network.weight.detach().clone()
        made.append(update(list(network.parameters()), optimizer, recipe, step))
        assert torch.equal(before, network.weight) != made[-1].stepped
    assert [each.stepped for each in made] == [True, False] and made[1].norms > 0
    assert optimizer.state[network.weight]["step"] == 1


FAMILIES_WITH_DROPOUT = ["llamagen_gpt", "randar", "rar", "maskgit"]


@pytest.mark.parametrize("name", FAMILIES_WITH_DROPOUT)
def test_dropout_is_a_function_of_the_steps_generator_and_only_in_training(name):
    meta, arrays = fill.load_golden(GOLDEN / f"train_step_{name}_tiny.npz")
    model = parity_generators._model(meta)
    tokens, labels = (torch.from_numpy(arrays[key][0]) for key in ("tokens", "labels"))
    draw = model.draw(len(tokens), Objective(), torch.Generator().manual_seed(0))

    whole = Rows.whole(len(tokens))

    def loss(seed, rate=0.1, rows=whole):
        recipe = replace(PLAIN, dropout=rate)
        prepare(model, recipe)
        seed_dropout(model.network, recipe, rows, torch.Generator().manual_seed(seed))
        part = model.training_loss(rows.take(tokens), rows.take(labels), Objective(), draw.take(rows))
        return part.mean.item()

    model.network.train()
    plain = loss(0, rate=0.0)
    assert loss(1) == loss(1) != loss(2) and loss(1) != plain
    assert sum(rows.share * loss(1, rows=rows) for rows in whole.split(2)) == pytest.approx(loss(1), rel=1e-6)
    assert sum(loss(seed) for seed in range(12)) / 12 == pytest.approx(plain, abs=0.15)
    model.network.eval()
    assert loss(1) == pytest.approx(plain, abs=1e-5)


def test_a_model_without_dropout_refuses_it(tiny):
    with pytest.raises(UsageError, match="dropout is not for a model of the family var"):
        prepare(VARLikelihood(tiny.var(), tiny.vqvae().quantize), replace(PLAIN, dropout=0.1))


@pytest.mark.parametrize("shared", [False, True])
def test_the_gates_of_a_new_var_start_as_small_as_it_is_said(tiny, shared):
    config = replace(tiny.var().config, shared_aln=shared)
    for factor in (1e-3, 5e-6):
        torch.manual_seed(0)
        block = initialize(VAR(config), factor).layers[0]
        six = block.ada_gss[0, 0] if shared else block.ada_lin[1].weight.unflatten(0, (6, -1))
        gates, others = six[:2].detach().std(), six[2:].detach().std()
        assert gates / others == pytest.approx(2 * factor, rel=0.1)
