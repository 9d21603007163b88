"""MaskGIT's transformers: parity with the reference implementation, block by block, and when sampling."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from masked_models import given_then_hidden, mean_bound, scored, total_probability

from avarc_cli import families
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.models.masked.likelihood import undo_smoothing
from avarc_cli.models.masked.loss import masked_loss, random_masks
from avarc_cli.models.maskgit import shapes
from avarc_cli.models.maskgit.benchmark import MaskGITWorkload
from avarc_cli.models.maskgit.bert import Bert
from avarc_cli.models.maskgit.config import MaskGITConfig
from avarc_cli.models.maskgit.family import BERT, UVIT
from avarc_cli.models.maskgit.initialize import initialize_uvit
from avarc_cli.models.maskgit.likelihood import MaskGITLikelihood
from avarc_cli.models.maskgit.sampling import Schedule, sample
from avarc_cli.models.maskgit.uvit import UViT
from avarc_cli.objective import Objective
from avarc_cli.tokenizers.titok.family import FAMILY as TITOK

FAMILIES = {"maskgit": UVIT, "maskgit_bert": BERT}


def load(name):
    meta, arrays = fill.load_golden(GOLDEN / f"{name}_tiny.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta.get("scales"))
    return meta, arrays, {key.removeprefix("model."): torch.from_numpy(value) for key, value in filled.items()}


def likelihood(name, steps=None):
    meta, _, tensors = load(name)
    family = FAMILIES[name]
    config = family.read_config(tensors, ConfigSources((("config.json", meta["config"]),)), name)
    return family.likelihood(family.network.from_state_dict(config, tensors, source=name), steps)


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request):
    """(tolerances, arrays, model)."""
    meta, arrays, _ = load(request.param)
    return meta["tolerances"], arrays, likelihood(request.param)


def tiny(tokens=4, codes=3, classes=2, steps=2):
    torch.manual_seed(0)
    config = MaskGITConfig(
        depth=2, width=8, heads=2, hidden=16, num_classes=classes, vocab_size=codes, num_tokens=tokens
    )
    network = initialize_uvit(UViT(config)).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return MaskGITLikelihood(network, steps)


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float((ours.double() - torch.from_numpy(theirs).double()).abs().max())


@torch.inference_mode()
def test_logits_of_hidden_tokens_are_the_references(golden):
    tolerances, arrays, model = golden
    for b, m in itertools.product(range(2), range(2)):
        ids = torch.from_numpy(arrays["masked_tokens"][b, m]).expand(11, -1)
        ours = model.transformer.logits(torch.arange(11), ids)
        hidden = arrays["masks"][m]
        assert error(ours[:, hidden], arrays["logits"][b, m][:, hidden]) <= tolerances["default_atol"]


@pytest.mark.parametrize("stops", [(16,), (1, 9, 16)])
def test_one_token_a_pass_is_the_references_chain(golden, stops):
    tolerances, arrays, model = golden
    tokens, order = torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["order"])
    ours = scored(model.with_steps(16), tokens, torch.arange(11), stops, order)
    assert error(ours, arrays["order_token_logprobs"]) <= tolerances["default_atol"]
    assert error(ours.double().sum(-1), arrays["order_sums"]) <= tolerances["sums_atol"]


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_likelihood_of_any_number_of_passes_sums_to_one(steps):
    total = total_probability(tiny(steps=steps), 3, torch.arange(3), torch.tensor([2, 0, 3, 1]))
    assert torch.allclose(total, torch.ones(3, dtype=torch.float64), atol=1e-5)


@torch.inference_mode()
def test_a_pass_scores_the_hidden_tokens_given_the_visible_ones():
    model, tokens, order = tiny(), torch.tensor([[2, 1, 0, 1]]), torch.tensor([3, 1, 0, 2])
    ours = scored(model, tokens, torch.tensor([1]), (1, 2), order)[0, 0]
    for t, position in enumerate(order.tolist()):
        visible = order[: 0 if t < 2 else 2]
        ids = torch.full((1, 4), 3)
        ids[0, visible] = tokens[0, visible]
        row = model.transformer.logits(torch.tensor([1]), ids)[0, position].log_softmax(0)
        assert ours[t] == pytest.approx(row[tokens[0, position]].item(), abs=1e-5)


def test_survivors_and_other_sequences_go_on_where_they_are():
    model = tiny(steps=4)
    tokens, order = torch.tensor([[2, 1, 0, 1], [2, 1, 0, 0]]), torch.tensor([[0, 1, 2, 3]] * 2)
    whole = scored(model, tokens, torch.arange(3), (4,), order[0])
    state = model.begin(tokens, torch.tensor([0, 0, 0]), torch.arange(3), order)
    model.extend(state, 2, keep_cache_segments=2)
    kept = model.select(state, torch.tensor([2, 0]))
    assert torch.allclose(model.extend(kept, 4, keep_cache_segments=0), whole[0, [2, 0], 2:], atol=1e-6)
    fork = model.fork(state, torch.tensor([1]), tokens, torch.tensor([1]), 2, order)
    assert torch.allclose(model.extend(fork, 4, keep_cache_segments=0), whole[1, [1], 2:], atol=1e-6)
    with pytest.raises(ValueError, match="cannot extend from segment 4 to 4"):
        model.extend(kept, 4, keep_cache_segments=0)


def test_the_score_with_gradients_is_the_score():
    model, tokens = tiny(steps=3), torch.tensor([[2, 1, 0, 1]])
    order = torch.tensor([[3, 1, 0, 2]])
    classes = torch.tensor([1])
    ours = model.token_log_prob(tokens, classes, order)
    assert torch.allclose(ours, scored(model, tokens, classes, (3,), order[0])[0], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_follows_the_references_schedule(name):
    meta, arrays = fill.load_golden(GOLDEN / f"{name}_sampling_tiny.npz")
    transformer, labels = likelihood(name).transformer, torch.from_numpy(arrays["labels"])
    for i, how in enumerate(meta["sampling"]):
        guidance = how["guidance"] - (how["decay"] == "power-cosine")
        schedule = Schedule(how["steps"], 0.0, guidance, how["decay"], how["annealing"])
        generators = [torch.Generator().manual_seed(k) for k in range(2)]
        ours = sample(transformer, labels, schedule, generators, guidance)
        assert np.array_equal(ours.numpy(), arrays[f"tokens_{i}"]), how


def test_an_image_does_not_depend_on_the_others_that_are_drawn_with_it():
    model = tiny(tokens=6, codes=5, steps=3)

    def draw(classes, seeds):
        return model.sample(
            torch.tensor(classes), generators=[torch.Generator().manual_seed(s) for s in seeds], guidance=2.0
        )

    together = draw([0, 1, 1], [5, 6, 7])
    assert torch.equal(together[1], draw([1], [6])[0]) and together.max() < 5
    assert Schedule.of_length(32).temperature == 9.5


def test_precisions_change_scores_by_their_rounding(golden):
    _, arrays, model = golden
    tokens = torch.from_numpy(arrays["tokens"])
    exact = scored(model, tokens, torch.arange(3), (model.steps,))
    low = likelihood("maskgit" if model.family == "maskgit" else "maskgit_bert")
    low.transformer.set_precision(precisions.find("bf16", torch.device("cpu")))
    ours = scored(low, tokens, torch.arange(3), (model.steps,))
    assert 0 < (ours - exact).abs().max() < 0.3


def test_a_class_alone_and_more_classes_score_as_before():
    model, tokens = tiny(steps=2), torch.tensor([[2, 1, 0, 1]])
    before = scored(model, tokens, torch.arange(3), (2,))
    alone = model.with_network(
        model.finish_network(model.one_class_network(torch.nn.Parameter(model.class_embedding(1).clone())))
    )
    assert torch.allclose(scored(alone, tokens, torch.tensor([0, 1]), (2,))[0], before[0, [1, 2]], atol=1e-6)
    grown = scored(model.with_more_classes(2), tokens, torch.tensor([0, 1, 4]), (2,))
    assert torch.allclose(grown[0], before[0], atol=1e-6)
    assert model.low_rank_targets("adaln") == {}
    targets = model.low_rank_targets("lora")
    assert targets["mid_block.attn.qkv"] == (24, 8) and len(targets) == 12


@pytest.mark.parametrize("name", FAMILIES)
def test_the_published_files_are_recognized_by_their_tensors(name):
    _, _, tensors = load(name)
    tensors["embeddings.position_ids"] = torch.arange(17)[None]
    family = families.GENERATORS.recognize(tensors, None, "a file")
    assert family is FAMILIES[name]
    config = family.read_config(tensors, ConfigSources((("c", {"num_attention_heads": 4}),)), "")
    assert family.network.from_state_dict(config, tensors, source="a file")


def test_without_a_configuration_there_are_sixteen_heads():
    _, _, tensors = load("maskgit")
    config = UVIT.read_config(tensors, ConfigSources(), "a file")
    assert config.heads == 16 and "heads" in config.inferred


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"model": {"generator": {"num_hidden_layers": 6}}}, "num_hidden_layers is 6 there, and 4 in the tensors"),
        ({"num_attention_heads": 5}, "its 128 channels do not divide among 5"),
        (
            {"layout": {"tokens": 32}},
            "the layout is 32 tokens without a grid there, and 16 tokens",
        ),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(stated, says):
    with pytest.raises(CheckpointError) as refused:
        UVIT.read_config(load("maskgit")[2], ConfigSources((("config.json", stated),)), "a file")
    assert says in str(refused.value)


@pytest.mark.parametrize("steps", [0, 5])
def test_more_passes_than_tokens_are_refused(steps):
    with pytest.raises(UsageError, match="4 tokens cannot be scored"):
        tiny(steps=steps)


def test_flops_count_every_product():
    config = MaskGITConfig(
        depth=20, width=1024, heads=16, hidden=4096, num_classes=1000, vocab_size=4096, num_tokens=128
    )
    assert math.isclose(config.pass_flops + 2 * 128 * 1024 * 4096, 76.1e9, rel_tol=0.01)
    assert replace(config, num_tokens=32).positions == 33


def test_draws_of_the_bound_are_the_references(golden):
    tolerances, arrays, model = golden
    tokens, hidden = torch.from_numpy(arrays["tokens"]), arrays["mc_masks"]
    for m, mask in enumerate(hidden):
        order = given_then_hidden(np.flatnonzero(mask).tolist(), len(mask))
        ours = scored(model.with_steps(1), tokens, torch.arange(11), (1,), order)
        assert not ours[:, :, : (~hidden[m]).sum()].any()
        assert error(ours.double().sum(-1), arrays["mc_terms"][:, :, m]) <= tolerances["sums_atol"]


@torch.inference_mode()
def test_the_mean_of_the_bound_over_all_masks_is_its_definition():
    model, tokens = tiny().with_steps(1), torch.tensor([[2, 1, 0, 1]])

    def by_hand(hidden):
        ids = tokens.clone()
        ids[0, list(hidden)] = 3
        rows = model.transformer.logits(torch.tensor([0]), ids)[0].log_softmax(-1)
        return 4 / len(hidden) * sum(rows[p, tokens[0, p]].item() for p in hidden)

    def by_model(hidden):
        return scored(model, tokens, torch.tensor([0]), (1,), given_then_hidden(hidden, 4)).sum().item()

    definition, mean = mean_bound(4, by_hand), mean_bound(4, by_model)
    assert mean == pytest.approx(definition, abs=1e-5)
    with pytest.raises(ValueError, match="for one pass, not for 2"):
        scored(tiny(), tokens, torch.tensor([0]), (1,), torch.tensor([~0, 1, 2, 3]))


def test_the_chain_over_all_orders_is_bounded_by_the_definition_of_the_bound():
    model, tokens = tiny(steps=4), torch.tensor([[2, 1, 0, 1]])
    chains = [
        scored(model, tokens, torch.tensor([0]), (4,), torch.tensor(order)).double().sum().item()
        for order in itertools.permutations(range(4))
    ]
    one_pass = model.with_steps(1)
    draws = [
        scored(one_pass, tokens, torch.tensor([0]), (1,), torch.tensor([*(~p for p in order[:given]), *order[given:]]))
        .double()
        .sum()
        .item()
        for order in itertools.permutations(range(4))
        for given in range(4)
    ]
    assert np.mean(draws) == pytest.approx(np.mean(chains), abs=1e-5)  # E over orders of log p is the bound


def test_smoothing_is_undone_where_the_network_is_at_its_optimum():
    p = torch.tensor([[0.7, 0.2, 0.1, 0.0]])
    ours = undo_smoothing((0.9 * p + 0.1 / 4).log(), 0.1).exp()
    assert torch.allclose(ours, p, atol=1e-3)
    assert torch.allclose(ours.sum(-1), torch.ones(1))
    total = total_probability(tiny().with_steps(2, unsmooth=0.1), 3, torch.arange(3), torch.arange(4))
    assert torch.allclose(total, torch.ones(3, dtype=torch.float64), atol=1e-5)


def test_the_loss_and_gradients_of_the_first_step_of_training_are_the_references():
    meta, arrays, tensors = load("train_step_maskgit")
    heads = ConfigSources((("config.json", {"num_attention_heads": meta["config"]["heads"]}),))
    network = Bert.from_state_dict(BERT.read_config(tensors, heads, "a file"), tensors, source="a file")
    network.requires_grad_(True)
    tokens, hidden, labels, drop = (torch.from_numpy(arrays[k][0]) for k in ("tokens", "masks", "labels", "drop"))
    classes = torch.where(drop, network.config.num_classes, labels)
    logits = network.logits(classes, tokens.masked_fill(hidden, network.config.mask))
    loss = masked_loss(logits, tokens, hidden, smoothing=0.1, visible=0.1).mean
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in network.parameters()]).norm()
    assert loss.item() == pytest.approx(arrays["loss"][0], abs=1e-5)
    assert norm.item() == pytest.approx(arrays["grad_norm"][0], rel=1e-4)


def test_masks_of_the_training_follow_the_published_law():
    hidden = random_masks(20_000, 32, torch.Generator().manual_seed(0)).sum(1).double()
    assert hidden.min() == 1 and hidden.max() == 32
    assert (hidden / 32).mean().item() == pytest.approx(2 / math.pi, abs=0.01)
    assert (hidden == 32).double().mean().item() == pytest.approx(0.0245, abs=0.005)


@pytest.mark.parametrize("shape", ["2:96:4:8", "b64"])
def test_a_random_model_agrees_with_the_straightforward_implementation(shape):
    if shape == "b64":
        network = likelihood("maskgit_bert").transformer
        workload, classes = MaskGITWorkload(network, torch.device("cpu")), torch.tensor([9, 0, 10])
    else:
        workload, classes = UVIT.random_workload(shape, None, torch.device("cpu")), torch.tensor([999, 4, 1000])
    model = workload.model("fp32", "torch")
    ours = scored(model, workload.tokens_L[None], classes, (model.steps,))[0]
    assert error(ours, workload.reference(classes).numpy()) < 1e-4


@pytest.mark.parametrize("shape", ["m", "3:96:4:8", "2:96:5:8", "2:96:4"])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(UsageError, match=f"no shape 'maskgit-{shape}'"):
        shapes.parse(shape)
    with pytest.raises(UsageError, match="have no grid"):
        shapes.parse("l32", (16,))


def test_a_new_model_learns_from_its_first_step():
    torch.manual_seed(0)
    titok = TITOK.new(image_size=8, patch=4, num_tokens=6, vocab_size=20, code_channels=4, width=64, depth=1)
    model = UVIT.new(titok, 3, depth=3, width=64, heads=2)
    assert (model.config.depth, model.config.num_tokens, model.segment_ends[-1]) == (2, 6, 6)
    tokens, classes = torch.randint(20, (4, 6)), torch.tensor([0, 1, 2, 3])
    network = model.network.requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        draw = model.draw(4, Objective(), torch.Generator().manual_seed(1))
        loss = model.training_loss(tokens, classes, Objective(), draw).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(20), abs=0.5) and losses[-1] < losses[0] - 0.1
    other = TITOK.new(image_size=8, patch=4, num_tokens=6, vocab_size=21, code_channels=4, width=64, depth=1)
    build = partial(UVIT.build, precision=precisions.FP32, kernels="torch", device=torch.device("cpu"), source="x")
    with pytest.raises(CheckpointError, match="6 tokens of 20 codes, the tokenizer 6 of 21"):
        build(model.config, {}, other)
