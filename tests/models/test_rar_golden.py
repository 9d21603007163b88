"""RAR's transformer: parity with the reference implementation in every order, in whole and segment by segment."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill

from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.random_weights import random_weights
from avarc_cli.models.rar import modulation, reference
from avarc_cli.models.rar.benchmark import parse_shape
from avarc_cli.models.rar.config import read_config
from avarc_cli.models.rar.family import FAMILY
from avarc_cli.models.rar.likelihood import RARLikelihood
from avarc_cli.models.rar.modulation import ModulationCache
from avarc_cli.models.rar.network import RAR
from avarc_cli.models.rar.sampling import Schedule, sample
from avarc_cli.models.rar.shapes import SHAPES
from avarc_cli.tokenizers.maskgit_vqgan.family import FAMILY as VQ_FAMILY
from avarc_cli.train.recipe import Recipe

GFLOP = {"b": 93, "l": 162, "xl": 335, "xxl": 534}  # of one pair, with attention in full


def load(name="rar_tiny"):
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta.get("scales"))
    return meta, arrays, {key: torch.from_numpy(value) for key, value in filled.items()}


def network(name="rar_tiny"):
    _, _, tensors = load(name)
    return RAR.from_state_dict(read_config(tensors, ConfigSources(), "rar"), tensors, source="rar")


@pytest.fixture(scope="module")
def rar():
    """(tolerances, arrays, model)."""
    meta, arrays, _ = load()
    return meta["tolerances"], arrays, RARLikelihood(network())


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float((ours.detach().double() - torch.from_numpy(theirs).double()).abs().max())


def scored(model, tokens, classes, stops, orders=None):
    """(images, classes, L), in the order of scoring."""
    pairs = torch.cartesian_prod(torch.arange(len(tokens)), classes)
    state = model.begin(tokens, pairs[:, 0], pairs[:, 1], orders)
    runs = [model.extend(state, stop, keep_cache_segments=stop) for stop in stops]
    return torch.cat(runs, dim=1).view(len(tokens), len(classes), -1)


def permuted(arrays):
    """Tokens, class and order of every pair of the golden permuted scores, (image, order) in this order."""
    image, order = torch.cartesian_prod(torch.arange(3), torch.arange(2)).unbind(1)
    tokens, labels, orders = (torch.from_numpy(arrays[name]) for name in ("tokens", "labels", "orders"))
    return tokens[image], labels[image], orders[order]


@pytest.mark.parametrize("stops", [[4], [1, 2, 3, 4], [2, 4]])
def test_token_log_probabilities_are_the_references_however_the_rows_are_taken(rar, stops):
    tolerance, arrays, model = rar
    ours = scored(model, torch.from_numpy(arrays["tokens"]), torch.arange(11), stops)
    assert error(ours, arrays["token_logprobs"]) <= tolerance["default_atol"]
    assert error(ours.double().sum(-1), arrays["sums"]) <= tolerance["sums_atol"]


@pytest.mark.parametrize("stops", [[4], [1, 3, 4]])
def test_any_order_is_scored_as_by_the_reference(rar, stops):
    tolerance, arrays, model = rar
    tokens, labels, orders = permuted(arrays)
    state = model.begin(tokens, torch.arange(6), labels, orders)
    ours = torch.cat([model.extend(state, stop, keep_cache_segments=stop) for stop in stops], dim=1).view(3, 2, 16)
    assert error(ours, arrays["perm_token_logprobs"]) <= tolerance["default_atol"]
    assert error(ours.double().sum(-1), arrays["perm_sums"]) <= tolerance["sums_atol"]


def test_log_probabilities_with_gradients_are_the_same(rar):
    tolerance, arrays, model = rar
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(11))
    ours = model.token_log_prob(torch.from_numpy(arrays["tokens"])[pairs[:, 0]], pairs[:, 1])
    assert error(ours.view(3, 11, 16), arrays["token_logprobs"]) <= tolerance["default_atol"]
    ours = model.token_log_prob(*permuted(arrays)).view(3, 2, 16)
    assert error(ours, arrays["perm_token_logprobs"]) <= tolerance["default_atol"]


def test_the_straightforward_implementation_gives_the_same(rar):
    tolerance, arrays, _ = rar
    _, _, tensors = load()
    ours = reference.token_log_probs(tensors, torch.from_numpy(arrays["tokens"][0]), torch.arange(11))
    assert error(ours, arrays["token_logprobs"][0]) <= tolerance["default_atol"]


def test_logits_are_the_references(rar):
    tolerance, arrays, model = rar
    tokens, place = torch.from_numpy(arrays["tokens"][:1]), torch.arange(16)[None]
    with torch.inference_mode():
        x = model.rar.embed_prefix(torch.tensor([3]), place[:, 0])
        x = torch.cat([x, model.rar.embed_tokens(tokens[:, :-1], place[:, :-1], place[:, 1:])], dim=1)
        logits = model.rar.lm_head(model.rar.hidden(x, model.rar.modulation(torch.tensor([3]), 17)))[:, 1:]
    assert error(logits, arrays["logits"][:1, 3]) <= 2 * tolerance["default_atol"]


@pytest.mark.parametrize("case", range(3))
def test_the_likeliest_tokens_are_drawn_with_guidance_as_by_the_reference(rar, case):
    meta, arrays, _ = load("rar_sampling_tiny")
    scale, temperature, power = meta["sampling"][case]
    labels, model = torch.from_numpy(arrays["labels"]), rar[2]
    generators = [torch.Generator().manual_seed(0) for _ in labels]
    schedule, guidance = Schedule(temperature, power), max(scale - 1, 0)
    drawn = sample(model.rar, model.modulation, labels, schedule, generators, guidance, top_k=1)
    assert np.array_equal(drawn.numpy(), arrays[f"tokens_{case}"])


def test_an_image_that_is_drawn_does_not_depend_on_the_others(rar):
    model, classes = rar[2], torch.tensor([3, 7, 3])
    draw = lambda rows: model.sample(  # noqa: E731
        classes[rows], generators=[torch.Generator().manual_seed(i) for i in rows], guidance=2.0
    )
    assert torch.equal(draw([0, 1, 2])[1:2], draw([1]))


def test_guidance_grows_from_none_to_the_strength_that_was_asked_for():
    assert Schedule(power=2.0).weight(3.0, 0.0) == 1.0
    assert Schedule(power=2.0).weight(3.0, 0.5) == pytest.approx(1 + 1.5 * (1 - math.cos(math.pi / 4)))
    assert Schedule(power=0.0).weight(3.0, 0.0) == 4.0
    assert Schedule.of_width(768) == Schedule(1.0, 2.75, 15.0) and Schedule.of_width(100) == Schedule(1.0, 1.0, 1.5)


def test_a_fork_continues_with_other_tokens_and_orders_as_if_scored_from_the_start(rar):
    _, arrays, model = rar
    tokens, labels, orders = permuted(arrays)
    others = tokens.clone()
    changed = orders[:, 8:]
    others.scatter_(1, changed, tokens.flip(0).gather(1, changed))
    new = torch.cat([orders[:, :8], orders[:, 8:].flip(1)], dim=1)  # the same first two segments
    state = model.begin(tokens, torch.arange(6), labels, orders)
    model.extend(state, 3, keep_cache_segments=3)
    forked = model.fork(state, torch.tensor([4, 1]), others, torch.tensor([4, 1]), 2, new)
    ours = model.extend(forked, 4, keep_cache_segments=0)
    whole = model.token_log_prob(others[[4, 1]], labels[[4, 1]], new[[4, 1]])
    assert error(ours, whole[:, 8:].numpy()) < 1e-5


def test_selected_pairs_go_on_joined_as_they_would_alone(rar):
    tolerance, arrays, model = rar
    tokens = torch.from_numpy(arrays["tokens"])
    several = model.begin(tokens, torch.tensor([0, 1, 2, 2]), torch.tensor([3, 10, 3, 0]))
    one = model.begin(tokens[2:], torch.tensor([0]), torch.tensor([3]))
    for state in (several, one):
        model.extend(state, 2, keep_cache_segments=2)
    joined = model.join([model.select(several, torch.tensor([3, 1])), one])
    ours = model.extend(joined, 4, keep_cache_segments=0)
    assert error(ours, arrays["token_logprobs"][[2, 1, 2], [0, 10, 3], 8:]) <= tolerance["default_atol"]


@pytest.fixture(params=[1, 6], ids=["a product for each table", "several tables in one"])
def products(request, monkeypatch):
    """Of 4 segments or fewer a run, so that both kinds of products are made."""
    monkeypatch.setattr(modulation, "AT_ONCE", request.param)


@pytest.mark.parametrize("room", [0, 1, 2, 5, 100])
def test_modulation_is_the_same_however_much_of_it_is_kept(rar, room, products):
    _, arrays, shared = rar
    model = RARLikelihood(shared.rar)
    class_bytes = model.modulation.bytes // 11
    few = RARLikelihood(model.rar, tables=ModulationCache(room * class_bytes))
    tokens, classes = torch.from_numpy(arrays["tokens"]), torch.tensor([4, 0, 10])
    for stops in ([4], [1, 2, 4], [4]):
        assert torch.equal(scored(few, tokens, classes, stops), scored(model, tokens, classes, stops))
    assert few.modulation.bytes == min(room, 11) * class_bytes and few.tables.bytes <= room * class_bytes
    assert bool(few.tables.bytes) == bool(room)
    parts = [part for table in few.tables._tables.values() for part in table.parts]
    assert few.tables.bytes == sum(part.untyped_storage().nbytes() for part in parts), "no view keeps more alive"


def test_modulation_of_more_classes_than_fit_is_not_kept(rar):
    _, arrays, model = rar
    few = RARLikelihood(model.rar, tables=ModulationCache(2 * model.modulation.bytes // 11))
    tokens, classes = torch.from_numpy(arrays["tokens"]), torch.tensor([4, 0, 10])
    few.prepare(classes.numpy())
    assert torch.equal(scored(few, tokens, classes, [2, 4]), scored(model, tokens, classes, [2, 4]))
    assert few.tables.bytes == 0
    few.prepare(classes.numpy()[1:])
    scored(few, tokens, classes[1:], [4])
    assert few.tables.bytes == 0, "others of the three follow, as in a cascade"
    few.prepare(classes.numpy()[:2] + 1)
    scored(few, tokens, classes[:2] + 1, [4])
    assert few.tables.bytes > 0


def test_tables_joined_in_one_as_on_a_gpu_give_the_same(rar, products):
    _, arrays, shared = rar
    model, joined = (RARLikelihood(shared.rar) for _ in range(2))
    joined.modulation.joined = True
    tokens = torch.from_numpy(arrays["tokens"])
    for class_ids in ([4, 0, 10], [0], [7, 10, 0, 10, 2], list(range(11))):  # none known, all, some; several products
        classes = torch.tensor(class_ids)
        for stops in ([4], [1, 2, 4]):
            assert torch.equal(scored(joined, tokens, classes, stops), scored(model, tokens, classes, stops))


def test_weights_that_change_in_place_get_their_own_modulation():
    model, tokens, classes = RARLikelihood(network()), torch.arange(16)[None], torch.tensor([2])
    before = scored(model, tokens, classes, [4])
    with torch.no_grad():
        model.rar.blocks[1].adaLN_modulation[1].weight.mul_(0.5)
    after = scored(model, tokens, classes, [4])
    assert not torch.equal(before, after)
    assert torch.equal(after, scored(RARLikelihood(model.rar), tokens, classes, [4]))


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_other_precisions_stay_near(rar, name):
    _, arrays, _ = rar
    near = RARLikelihood(network().set_precision(precisions.find(name, torch.device("cpu"))))
    ours = scored(near, torch.from_numpy(arrays["tokens"]), torch.arange(11), [2, 4])
    assert (ours - torch.from_numpy(arrays["token_logprobs"])).abs().mean() < 0.1  # nats; the tokens differ by nats


def test_a_model_in_8_bits_cannot_be_trained():
    model = RARLikelihood(network().set_precision(precisions.find("int8", torch.device("cpu"))))
    with pytest.raises(UsageError, match="cannot be trained"):
        model.token_log_prob(torch.zeros(1, 16, dtype=torch.int64), torch.tensor([0]))


def test_the_loss_of_the_first_step_of_training_is_the_references():
    _, arrays, _ = load("train_step_rar_tiny")
    model = RARLikelihood(network("train_step_rar_tiny").requires_grad_(True))
    tokens, orders = (torch.from_numpy(arrays[name][0]) for name in ("tokens", "orders"))
    labels = torch.where(torch.from_numpy(arrays["drop"][0]), model.num_classes, torch.from_numpy(arrays["labels"][0]))
    loss = -model.token_log_prob(tokens, labels, orders).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.rar.parameters()]).norm()
    assert loss.item() == pytest.approx(arrays["loss"][0], abs=1e-4)
    assert norm.item() == pytest.approx(arrays["grad_norm"][0], rel=1e-3)


def test_orders_are_random_at_first_and_raster_in_the_end(rar):
    model, generator = rar[2], torch.Generator().manual_seed(0)
    raster, recipe = torch.arange(16), Recipe(steps=400, batch_size=1, lr=1.0)

    def share(done):
        orders = model.draw(400, recipe.objective(round(400 * done)), generator).order_BL
        assert torch.equal(orders.sort(dim=1).values, raster.expand(400, -1))
        return float((orders != raster).any(dim=1).float().mean())

    assert share(0.0) == share(0.5) == 1.0
    assert share(0.625) == pytest.approx(0.5, abs=0.1)
    assert model.draw(4, recipe.objective(300), generator).order_BL is None


def test_one_class_alone_and_more_classes_score_as_before(rar):
    _, arrays, model = rar
    tokens = torch.from_numpy(arrays["tokens"])
    whole = scored(model, tokens, torch.tensor([7, 10]), [4])
    row = torch.nn.Parameter(model.class_embedding(7).clone())
    alone = model.with_network(model.finish_network(model.one_class_network(row)))
    assert torch.equal(scored(alone, tokens, torch.tensor([0, 1]), [4]), whole)
    alone.token_log_prob(tokens, torch.zeros(3, dtype=torch.int64)).sum().backward()
    assert row.grad.abs().sum() > 0
    grown = model.with_more_classes(2)
    assert torch.equal(scored(grown, tokens, torch.tensor([7, 12]), [4]), whole)
    mean = torch.stack([model.class_embedding(i) for i in range(10)]).mean(0)
    assert torch.allclose(grown.class_embedding(11), mean)


@pytest.mark.parametrize("method", ["adaln", "lora"])
def test_the_linears_of_low_rank_changes_are_the_networks(rar, method):
    targets = rar[2].low_rank_targets(method)
    assert len(targets) == (5 if method == "adaln" else 16)
    for name, shape in targets.items():
        assert rar[2].rar.get_submodule(name).weight.shape == shape


def test_the_shape_is_read_off_the_tensors(rar):
    config = rar[2].config
    assert (config.depth, config.width, config.heads, config.hidden) == (4, 128, 4, 512)
    assert (config.num_classes, config.vocab_size, config.ends) == (10, 128, (4, 8, 12, 16))
    assert rar[2].any_order and rar[2].default_orders == 0 and rar[2].unconditional == 10


@pytest.mark.parametrize("size", SHAPES)
def test_published_shapes_take_as_many_operations_as_they_should(size):
    config = parse_shape(size)
    length = config.ends[-1] + 1
    in_full = config.flops + 2 * config.depth * config.width * length * (length - 1)
    assert in_full / 1e9 == pytest.approx(GFLOP[size], rel=0.01)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"hidden_size": 256}, "hidden_size is 256 there, and 128 in the tensors"),
        ({"num_attention_heads": 8, "image_seq_len": 64}, "image_seq_len is 64 there, and 16"),
        ({"layout": {"grids": [[2, 8]]}}, "the layout is 2x8 grid there, and 4x4 grid"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(stated, says):
    with pytest.raises(CheckpointError) as refused:
        read_config(load()[2], ConfigSources((("config.json", stated),)), "rar_b.bin")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("key", "shape", "says"),
    [
        ("pos_embed", (1, 1039, 128), "its 15 tokens fill no square"),
        ("pos_embed", (1, 256, 128), "tokens fill no square"),
        ("blocks.0.attn.q_norm.weight", (48,), "do not divide among heads of 48"),
        ("embeddings.weight", (130, 128), "it has no classes"),
        ("blocks.2.mlp.fc1.weight", (256, 128), "(256, 128) instead of (512, 128)"),
    ],
)
def test_tensors_of_other_shapes_are_refused(key, shape, says):
    _, _, tensors = load()
    tensors[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError) as refused:
        RAR.from_state_dict(read_config(tensors, ConfigSources(), "rar_b.bin"), tensors, source="rar_b.bin")
    assert says in str(refused.value)


def test_tokens_of_another_vocabulary_or_grid_are_refused(rar):
    vq = VQ_FAMILY.new(image_size=8, vocab_size=128, code_channels=4, ch=32, ch_mult=(1, 2), blocks=1)
    cpu, config = torch.device("cpu"), rar[2].config
    build = lambda c: FAMILY.build(c, {}, vq, precision=precisions.FP32, kernels="torch", device=cpu, source="a")  # noqa: E731
    with pytest.raises(CheckpointError, match="1024 codes on a 4x4 grid, the tokenizer 128 on a 4x4 grid"):
        build(dataclasses.replace(config, vocab_size=1024))
    with pytest.raises(CheckpointError, match="128 codes on a 5x5 grid"):
        build(dataclasses.replace(config, side=5))


def test_a_new_model_begins_with_the_distribution_of_its_head():
    torch.manual_seed(0)
    vq = VQ_FAMILY.new(image_size=6, vocab_size=20, code_channels=4, ch=32, ch_mult=(1, 2), blocks=1)
    model = FAMILY.new(vq, 3, depth=2, width=64, heads=4)
    assert model.segment_ends == (3, 6, 9) and model.config.heads == 4
    x = torch.randint(20, (2, 9))
    assert torch.allclose(model.token_log_prob(x, torch.tensor([0, 3])), torch.tensor(-math.log(20)), atol=1.0)
    with pytest.raises(UsageError, match="cannot have 3 heads"):
        FAMILY.new(vq, 3, depth=2, width=64, heads=3)


def test_a_random_model_agrees_with_the_straightforward_implementation():
    random = random_weights(RAR(parse_shape("3:96:4", [5])))
    tokens, classes = torch.randint(1024, (25,)), torch.tensor([999, 4, 1000])
    plain = reference.token_log_probs(copy.deepcopy(random).state_dict(), tokens, classes)
    assert error(scored(RARLikelihood(random), tokens[None], classes, [1, 5])[0], plain.numpy()) < 1e-4
