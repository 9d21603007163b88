"""RandAR's transformer: parity with the reference implementation along any order, within the file's tolerances."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from torch.nn import functional as F

from avarc_cli.added_classes import AddedClass, AddedClassesModel
from avarc_cli.families import GENERATORS
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.models.llamagen.config import read_config
from avarc_cli.models.randar.config import RandARConfig
from avarc_cli.models.randar.initialize import initialize
from avarc_cli.models.randar.likelihood import RandARLikelihood
from avarc_cli.models.randar.network import RandAR
from avarc_cli.models.randar.sampling import block_sizes, sample
from avarc_cli.objective import Objective


def tensors_of_file():
    meta, arrays = fill.load_golden(GOLDEN / "randar_tiny.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    return meta, arrays, {key: torch.from_numpy(value) for key, value in filled.items()}


@pytest.fixture(scope="module")
def golden():
    """(meta, arrays as tensors, model)."""
    meta, arrays, tensors = tensors_of_file()
    config = read_config(tensors, ConfigSources((("config.json", meta["config"]),)), "the golden file", RandARConfig)
    model = RandARLikelihood(RandAR.from_state_dict(config, tensors, source="gpt"))
    return meta, {name: torch.from_numpy(array) for name, array in arrays.items()}, model


def error(ours, theirs) -> float:
    return float((ours.detach().double() - theirs.double()).abs().max())


def scored(model, tokens, classes, order, stops):
    """log p (B, C, L) of every sequence under every class along one order, or that of each sequence."""
    pairs = torch.cartesian_prod(torch.arange(len(tokens)), torch.arange(len(classes)))
    state = model.begin(tokens, pairs[:, 0], classes[pairs[:, 1]], None if order is None else order.expand_as(tokens))
    runs = [model.extend(state, stop, keep_cache_segments=stop) for stop in stops]
    return torch.cat(runs, dim=1).view(len(tokens), len(classes), -1)


@pytest.mark.parametrize("stops", [[4], [1, 2, 3, 4], [2, 4]])
def test_token_log_probabilities_are_the_references_however_the_runs_are_taken(golden, stops):
    meta, arrays, model = golden
    ours = [scored(model, arrays["tokens"], arrays["classes"], order, stops) for order in arrays["orders"]]
    ours = torch.stack(ours, dim=1)
    assert error(ours, arrays["logp"]) <= meta["tolerance"]["logp"]
    assert error(ours.double().sum(-1), arrays["loglik"]) <= meta["tolerance"]["loglik"]


def test_means_over_orders_and_their_predictions_are_the_references(golden):
    meta, arrays, model = golden
    orders = arrays["orders"]
    sums = [scored(model, arrays["tokens"], arrays["classes"], order, [4]).double().sum(-1) for order in orders]
    sums = torch.stack(sums, dim=1)  # (B, K, C)
    rules = {
        "mean": sums.mean(1),
        "lme": sums.logsumexp(1) - np.log(len(orders)),
        "posterior": sums[:, :, :-1].softmax(-1).mean(1),
    }
    for name, found in rules.items():
        expected = "mean_posterior" if name == "posterior" else f"{name}_loglik"
        assert error(found, arrays[expected]) <= meta["tolerance"][expected]
        assert torch.equal(found[:, :10].argmax(-1), arrays[f"pred_{name}"])


def test_without_an_order_the_positions_are_scored_in_theirs(golden):
    _, arrays, model = golden
    raster = len(arrays["orders"]) - 1
    assert torch.equal(arrays["orders"][raster], torch.arange(16))
    ours = scored(model, arrays["tokens"], arrays["classes"], None, [4])
    assert error(ours, arrays["logp"][:, raster]) < 1e-4


def test_every_sequence_may_have_its_own_order_with_and_without_gradients(golden):
    meta, arrays, model = golden
    tokens, orders, classes = arrays["tokens"], arrays["row_orders"], arrays["row_classes"]
    state = model.begin(tokens, torch.arange(5), classes, orders)
    assert error(model.extend(state, 4, keep_cache_segments=0), arrays["row_logp"]) <= meta["tolerance"]["row_logp"]
    ours = model.token_log_prob(tokens, classes, orders)
    assert error(ours, arrays["row_logp"]) <= meta["tolerance"]["row_logp"]


def test_instructions_rotations_and_logits_are_the_references(golden):
    meta, arrays, model = golden
    gpt = model.gpt
    assert error(gpt.table_LJ2, arrays["rope"]) <= meta["tolerance"]["rope"]
    ours = torch.stack([gpt.instructions()[order] for order in arrays["orders"]])
    assert error(ours, arrays["instructions"]) <= meta["tolerance"]["instructions"]
    for (row, order, class_id), expected in zip(meta["logit_triples"], arrays["logits"], strict=True):
        log_p = expected.log_softmax(-1)
        along = arrays["tokens"][row][arrays["orders"][order]]
        ours = scored(model, arrays["tokens"][[row]], torch.tensor([class_id]), arrays["orders"][order], [4])[0, 0]
        assert error(ours, log_p.gather(1, along[:, None])[:, 0]) <= meta["tolerance"]["logits"]


@pytest.mark.parametrize("name", ["greedy_sequential", "greedy_parallel"])
def test_the_likeliest_tokens_are_drawn_as_by_the_reference(golden, name):
    meta, arrays, model = golden
    how, classes = meta["sampling"], arrays["greedy_class"]
    steps = how["steps"][name == "greedy_parallel"]
    assert block_sizes(16, steps) == how["step_sizes"][name]
    drawn = sample(
        model.gpt,
        classes,
        generators=[torch.Generator() for _ in classes],
        guidance=how["cfg"][1] - how["cfg"][0],
        top_k=1,
        order_BL=arrays["orders"][how["order"]].expand(len(classes), -1),
        step_count=steps,
    )
    assert torch.equal(drawn, arrays[name])


def test_the_published_number_of_steps_draws_more_and_more_tokens():
    sizes = block_sizes(256, 88)
    assert (sum(sizes), len(sizes), sizes[0]) == (256, 88, 1) and set(sizes[-8:]) == {4, 5}
    assert block_sizes(256, 256) == [1] * 256 and block_sizes(4, 1) == [1, 3]


def test_an_image_is_drawn_in_its_own_order_whatever_the_others(golden):
    _, arrays, model = golden
    classes = arrays["greedy_class"]
    together = model.sample(classes, generators=[torch.Generator().manual_seed(i) for i in (4, 5)])
    alone = model.sample(classes[1:], generators=[torch.Generator().manual_seed(5)])
    assert torch.equal(together[1:], alone) and int(together.min()) >= 0 and int(together.max()) < 128


@pytest.mark.parametrize("revealed", [0, 1, 5, 15])
def test_the_block_parallel_estimate_sees_what_is_revealed_and_nothing_else(golden, revealed):
    _, arrays, model = golden
    tokens, orders, classes = arrays["tokens"], arrays["row_orders"], arrays["row_classes"]
    ours = model.block_parallel(tokens, torch.arange(5), classes, orders, revealed=revealed)
    whole = model.extend(model.begin(tokens, torch.arange(5), classes, orders), 4, keep_cache_segments=0)
    assert ours.shape == (5, 16) and error(ours[:, : revealed + 1], whole[:, : revealed + 1]) < 1e-5
    for step in range(revealed, 16):  # its position, asked for directly after what is revealed
        first = orders.clone()
        first[:, revealed], first[:, step] = orders[:, step], orders[:, revealed]
        state = model.begin(tokens, torch.arange(5), classes, first)
        alone = model.extend(state, 4, keep_cache_segments=0)[:, revealed]
        assert error(ours[:, step], alone) < 1e-5


def test_the_block_parallel_estimate_equals_its_mask_written_out(golden):
    """One image and class, by a transformer that keeps everything it computes."""
    _, arrays, model = golden
    b, order, gpt = 6, arrays["row_orders"][0], model.gpt
    tokens, class_id = arrays["tokens"][0], arrays["row_classes"][:1]
    rows, x = [torch.zeros(1, 16, 2)], [gpt.cls_embedding.embedding_table(class_id)]
    for step in range(16):
        cell = order[step]
        rows += [gpt.table_LJ2[1 + cell][None]] * (2 if step < b else 1)
        x += [gpt.instructions()[cell][None]] + [gpt.tok_embeddings(tokens[cell])[None]] * (step < b)
    x, table = torch.cat(x), torch.cat(rows)
    sees = torch.zeros(len(x), len(x), dtype=torch.bool)
    for i in range(len(x)):
        sees[i, : min(i + 1, 1 + 2 * b)], sees[i, i] = True, True
    turn = torch.view_as_complex(table)[:, None]
    for block in gpt.blocks:
        q, k, v = block.attention.wqkv(norm(x, block.attention_norm.weight)).unflatten(1, (3, 4, 32)).unbind(1)
        q, k = (
            torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
            for part in (q, k)
        )
        weights = torch.einsum("qhd,khd->hqk", q, k) / 32**0.5
        mean = torch.einsum("hqk,khd->qhd", weights.masked_fill(~sees, -torch.inf).softmax(-1), v)
        x = x + block.attention.wo(mean.flatten(1))
        gate = block.feed_forward
        normed = norm(x, block.ffn_norm.weight)
        x = x + gate.w2(F.silu(gate.w1(normed)) * gate.w3(normed))
    log_p = gpt.output(norm(x, gpt.norm.weight)).log_softmax(-1)
    asked = [2 * step + 1 if step < b else 1 + 2 * b + step - b for step in range(16)]
    expected = log_p[asked].gather(1, tokens[order][:, None])[:, 0]
    ours = model.block_parallel(tokens[None], torch.tensor([0]), class_id, order[None], revealed=b)
    assert error(ours[0], expected) < 1e-5


def norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def test_added_classes_have_the_block_parallel_estimate_of_their_base(golden):
    _, arrays, model = golden
    added = AddedClass.new(model, 3, "lora", rank=2, generator=torch.Generator())  # scores as class 3 until trained
    both, tokens, order = AddedClassesModel(model, [added]), arrays["tokens"][:1], arrays["row_orders"][:1]
    new, old = (
        each.block_parallel(tokens, torch.tensor([0]), torch.tensor([class_id]), order, revealed=4)
        for each, class_id in ((both, 10), (model, 3))
    )
    assert both.has_block_parallel and error(new, old) < 1e-5


@pytest.mark.parametrize("revealed", [-1, 16])
def test_the_block_parallel_estimate_leaves_a_token_to_ask_for(golden, revealed):
    _, arrays, model = golden
    with pytest.raises(ValueError, match="of 16"):
        model.block_parallel(arrays["tokens"][:1], torch.tensor([0]), torch.tensor([0]), revealed=revealed)


def test_a_fork_continues_with_other_tokens_and_another_order_as_if_scored_from_the_start(golden):
    _, arrays, model = golden
    tokens, classes, orders = arrays["tokens"], arrays["classes"], arrays["row_orders"]
    state = model.begin(tokens, torch.arange(5), classes[:5], orders)
    model.extend(state, 3, keep_cache_segments=3)
    others, other_orders = tokens.clone(), orders.clone()
    other_orders[:, 8:] = orders[:, 8:].flip(1)  # the same first two runs, of the same tokens
    for row, order in enumerate(orders):
        others[row, order[8:]] = tokens[row, order[8:]].flip(0) + 1
    others %= 128
    forked = model.fork(state, torch.tensor([4, 1]), others, torch.tensor([4, 1]), 2, other_orders)
    ours = model.extend(forked, 4, keep_cache_segments=0)
    whole = model.begin(others[[4, 1]], torch.arange(2), classes[[4, 1]], other_orders[[4, 1]])
    assert error(ours, model.extend(whole, 4, keep_cache_segments=0)[:, 8:]) < 1e-5


def test_selected_pairs_go_on_joined_as_they_would_alone(golden):
    _, arrays, model = golden
    given = arrays["tokens"], arrays["row_classes"], arrays["row_orders"]
    states = []
    for start in (0, 2):
        tokens, classes, orders = (each[start:] for each in given)
        states.append(model.begin(tokens, torch.arange(5 - start), classes, orders))
        model.extend(states[-1], 2, keep_cache_segments=2)
    joined = model.join([model.select(states[0], torch.tensor([4, 0])), model.select(states[1], torch.tensor([1]))])
    ours = model.extend(joined, 4, keep_cache_segments=0)
    assert error(ours, arrays["row_logp"][[4, 0, 3], 8:]) < 1e-4


def test_a_state_without_its_cache_cannot_be_extended(golden):
    _, arrays, model = golden
    state = model.begin(arrays["tokens"][:1], torch.tensor([0]), torch.tensor([0]))
    model.extend(state, 2, keep_cache_segments=1)
    with pytest.raises(ValueError, match="8 positions are cached"):
        model.extend(state, 3, keep_cache_segments=0)


@pytest.mark.parametrize(("name", "nats"), [("bf16", 0.05), ("int8", 0.1)])
def test_other_precisions_stay_near(golden, name, nats):
    _, arrays, model = golden
    network = RandAR.from_state_dict(model.config, model.network.state_dict(), source="gpt")
    near = RandARLikelihood(network.set_precision(precisions.find(name, torch.device("cpu"))))
    ours = scored(near, arrays["tokens"], arrays["classes"], arrays["orders"][0], [4])
    assert (ours - arrays["logp"][:, 0]).abs().mean() < nats  # the tokens differ by nats


def test_grouped_heads_equal_a_model_whose_key_heads_are_repeated():
    torch.manual_seed(0)
    config = RandARConfig(depth=2, width=64, heads=4, kv_heads=2, ffn=96, num_classes=3, vocab_size=20, side=3)
    network = initialize(RandAR(config)).eval().requires_grad_(False)
    torch.nn.init.normal_(network.output.weight, std=0.2)
    tensors = network.state_dict()
    for key in [key for key in tensors if "wqkv" in key]:
        q, k, v = tensors[key].split([64, 32, 32])
        tensors[key] = torch.cat([q, *(x.unflatten(0, (2, 16)).repeat_interleave(2, 0).flatten(0, 1) for x in (k, v))])
    wide = RandAR.from_state_dict(dataclasses.replace(config, kv_heads=4), tensors, source="wide")
    tokens, classes, order = torch.randint(20, (2, 9)), torch.arange(4), torch.randperm(9)
    few, many = (RandARLikelihood(gpt) for gpt in (network, wide))
    assert error(*(scored(model, tokens, classes, order, [1, 3]) for model in (few, many))) < 1e-5
    pairs = torch.zeros(4, dtype=torch.int64), classes
    assert (
        error(*(model.block_parallel(tokens, *pairs, order.expand(2, 9), revealed=3) for model in (few, many))) < 1e-5
    )


def test_orders_in_training_are_permutations_drawn_anew(golden):
    model, generator = golden[2], torch.Generator().manual_seed(0)
    drawn = model.draw(64, Objective(permuted=0.5), generator).order_BL
    assert torch.equal(drawn.sort(1).values, torch.arange(16).expand(64, -1))
    assert len(drawn.unique(dim=0)) == 64 and not torch.equal(drawn, model.draw(64, Objective(), generator).order_BL)


def test_gradients_reach_the_instruction_and_every_other_tensor(golden):
    _, arrays, model = golden
    copies = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    network = RandAR.from_state_dict(model.config, copies, source="gpt")
    trained = model.with_network(network.requires_grad_(True))
    trained.token_log_prob(arrays["tokens"], arrays["row_classes"], arrays["row_orders"]).mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in trained.network.parameters())


def test_a_checkpoint_is_recognized_among_the_families():
    _, _, tensors = tensors_of_file()
    assert GENERATORS.recognize(tensors, None, "a file").name == "randar"
    del tensors["pos_instruct_embeddings"]
    assert GENERATORS.recognize(tensors, None, "a file").name == "llamagen"
