"""LlamaGen's tokenizer and transformer: parity with the reference implementation, within each file's tolerances."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill

from avarc_cli.errors import CheckpointError
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layout import TokenLayout
from avarc_cli.models.llamagen import reference
from avarc_cli.models.llamagen.config import LlamaGenConfig, ffn_width, read_config
from avarc_cli.models.llamagen.family import FAMILY
from avarc_cli.models.llamagen.initialize import initialize
from avarc_cli.models.llamagen.likelihood import LlamaGenLikelihood
from avarc_cli.models.llamagen.network import TABLE, LlamaGen, rotations
from avarc_cli.tokenizers.llamagen_vq.family import FAMILY as VQ_FAMILY
from avarc_cli.tokenizers.llamagen_vq.family import STATISTICS

SIZES = {"B": (768, 2048), "L": (1024, 2816), "XL": (1280, 3584), "XXL": (1536, 4096), "3B": (3200, 8704)}


def load(name):
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    return meta, arrays, {key: torch.from_numpy(value) for key, value in filled.items()}


@pytest.fixture(scope="module")
def gpt():
    """(tolerances, arrays, model)."""
    meta, arrays, tensors = load("llamagen_gpt_tiny")
    tensors[TABLE] = torch.zeros(17, 16, 2)  # in some published files, and not used
    config = read_config(tensors, ConfigSources((("config.json", meta["config"]),)), "the golden file", LlamaGenConfig)
    return meta["tolerance"], arrays, LlamaGenLikelihood(LlamaGen.from_state_dict(config, tensors, source="gpt"))


@pytest.fixture(scope="module")
def vq():
    """(tolerances, arrays, tokenizer)."""
    meta, arrays, tensors = load("llamagen_vq_tiny")
    tensors[STATISTICS] = torch.zeros(65536)
    return meta["tolerance"], arrays, VQ_FAMILY.build(tensors, ConfigSources((("config.json", meta["config"]),)), "vq")


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float((ours.detach().double() - torch.from_numpy(theirs).double()).abs().max())


def scored(model, tokens, classes, stops):
    pairs = torch.cartesian_prod(torch.arange(len(tokens)), torch.arange(len(classes)))
    state = model.begin(tokens, pairs[:, 0], classes[pairs[:, 1]])
    runs = [model.extend(state, stop, keep_cache_segments=stop) for stop in stops]
    return torch.cat(runs, dim=1).view(len(tokens), len(classes), -1)


@torch.inference_mode()
def test_tokens_codes_and_pictures_are_the_references(vq):
    tolerance, arrays, tokenizer = vq
    images = torch.from_numpy(arrays["image"])
    latents = tokenizer.encode(images)
    assert error(tokenizer.encoder(images), arrays["encoder_out"]) <= tolerance["encoder_out"]
    assert error(latents, arrays["latents"]) <= tolerance["latents"]
    tokens = tokenizer.tokenize(latents)
    assert np.array_equal(tokens.numpy(), arrays["tokens"])
    codes = tokenizer.quantize.lookup(tokens, tokenizer.config.side)
    assert error(codes, arrays["codes"]) <= tolerance["codes"]
    assert error(tokenizer.decode(codes), arrays["decoded"]) <= tolerance["decoded"]
    assert error(tokenizer.reconstruct(tokens), arrays["decoded"].clip(-1, 1)) <= tolerance["decoded"]


@torch.inference_mode()
def test_the_tokenizer_reads_images_of_any_size_that_the_ratio_divides():
    _, arrays, tensors = load("llamagen_vq_tiny")
    small = VQ_FAMILY.build(tensors, ConfigSources((("the command", {"image_size": 32}),)), "vq")
    assert (small.image_size, str(small.layout)) == (32, "2x2 grid")
    tokens = small.tokenize(small.encode(torch.from_numpy(arrays["image"])[:, :, :32, :32]))
    assert tokens.shape == (2, 4) and small.reconstruct(tokens).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("stops", [[4], [1, 2, 3, 4], [2, 4]])
def test_token_log_probabilities_are_the_references_however_the_rows_are_taken(gpt, stops):
    tolerance, arrays, model = gpt
    ours = scored(model, torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["classes"]), stops)
    assert error(ours, arrays["logp"]) <= tolerance["logp"]
    assert error(ours.double().sum(-1), arrays["loglik"]) <= tolerance["loglik"]
    assert np.array_equal(ours[:, :-1].sum(-1).argmax(1).numpy(), arrays["pred"])


def test_log_probabilities_with_gradients_are_the_same(gpt):
    tolerance, arrays, model = gpt
    tokens, classes = torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["classes"])
    pairs = torch.cartesian_prod(torch.arange(len(tokens)), torch.arange(len(classes)))
    ours = model.token_log_prob(tokens[pairs[:, 0]], classes[pairs[:, 1]])
    assert error(ours.view(arrays["logp"].shape), arrays["logp"]) <= tolerance["logp"]


def test_the_plain_implementation_scores_the_first_tokens_of_a_grid(gpt):
    tolerance, arrays, model = gpt
    first_L, classes = torch.from_numpy(arrays["tokens"][0, :6]), torch.from_numpy(arrays["classes"])
    shape = {"heads": model.config.heads, "cells": arrays["tokens"].shape[1]}
    plain = reference.token_log_probs(model.checkpoint_tensors(), first_L, classes, **shape)
    assert error(plain, arrays["logp"][0, :, :6]) <= tolerance["logp"]


def test_rotations_are_the_references_and_none_at_the_class(gpt):
    tolerance, arrays, _ = gpt
    ours = rotations(4, 32)
    assert error(ours, arrays["rope"]) <= tolerance["rope"] and not ours[0].any()


@pytest.mark.parametrize(("guidance", "expected"), [(0.0, "greedy_cfg1"), (1.0, "greedy_cfg2")])
def test_the_likeliest_tokens_are_drawn_as_by_the_reference(gpt, guidance, expected):
    _, arrays, model = gpt
    classes = torch.from_numpy(arrays["greedy_class"])
    generators = [torch.Generator().manual_seed(0) for _ in classes]
    drawn = model.sample(classes, generators=generators, guidance=guidance, top_k=1)
    assert np.array_equal(drawn.numpy(), arrays[expected])


def test_a_fork_continues_with_other_tokens_as_if_scored_from_the_start(gpt):
    _, arrays, model = gpt
    tokens, classes = torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["classes"])
    others = tokens.clone()
    others[:, 8:] = tokens.flip(0)[:, 8:]  # the same first two rows
    state = model.begin(tokens, torch.arange(6), classes[:6])
    model.extend(state, 3, keep_cache_segments=3)
    forked = model.fork(state, torch.tensor([4, 1]), others, torch.tensor([4, 1]), 2)
    ours = model.extend(forked, 4, keep_cache_segments=0)
    whole = scored(model, others[[4, 1]], classes[[4, 1]], [4])
    assert error(ours, whole[[0, 1], [0, 1], 8:].numpy()) < 1e-5


def test_selected_pairs_go_on_joined_as_they_would_alone(gpt):
    _, arrays, model = gpt
    tokens, classes = torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["classes"])
    states = [model.begin(tokens[start:], torch.arange(6 - start), classes[start:6]) for start in (0, 3)]
    for state in states:
        model.extend(state, 2, keep_cache_segments=2)
    joined = model.join([model.select(states[0], torch.tensor([5, 0])), states[1]])
    forked = model.fork(joined, torch.tensor([4, 1]), tokens, torch.tensor([5, 0]), 2)
    for state, rows in ((model.select(joined, torch.tensor([3, 1])), [4, 0]), (joined, [5, 0, 3, 4, 5])):
        ours = model.extend(state, 4, keep_cache_segments=0)
        assert error(ours, arrays["logp"][rows, rows, 8:]) < 1e-4
    assert error(model.extend(forked, 4, keep_cache_segments=0), arrays["logp"][[5, 0], [5, 0], 8:]) < 1e-4


@pytest.mark.parametrize(("name", "most"), [("bf16", 0.05), ("int8", 0.1)])  # nats; int8 without VNNI has 7 bits
def test_other_precisions_stay_near(gpt, name, most):
    _, arrays, model = gpt
    with torch.device("meta"):
        network = LlamaGen(model.config)
    network.load_state_dict(model.network.state_dict(), assign=True)
    network.table_LJ2 = model.network.table_LJ2
    cpu = torch.device("cpu")
    near = LlamaGenLikelihood(network.eval().requires_grad_(False).set_precision(precisions.find(name, cpu)))
    ours = scored(near, torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["classes"]), [4])
    assert (ours - torch.from_numpy(arrays["logp"])).abs().mean() < most  # the tokens differ by nats


def grouped(seed=0):
    """A model whose four heads of queries read two heads of keys."""
    torch.manual_seed(seed)
    config = LlamaGenConfig(depth=2, width=64, heads=4, kv_heads=2, ffn=96, num_classes=3, vocab_size=20, side=3)
    network = initialize(LlamaGen(config))
    torch.nn.init.normal_(network.output.weight, std=0.2)
    return network.eval().requires_grad_(False)


def test_grouped_heads_equal_a_model_whose_key_heads_are_repeated():
    network = grouped()
    wide = LlamaGen(dataclasses.replace(network.config, kv_heads=4)).eval().requires_grad_(False)
    tensors = network.state_dict()
    for key in [key for key in tensors if "wqkv" in key]:
        q, k, v = tensors[key].split([64, 32, 32])
        tensors[key] = torch.cat([q, *(x.unflatten(0, (2, 16)).repeat_interleave(2, 0).flatten(0, 1) for x in (k, v))])
    wide.load_state_dict(tensors)
    tokens, classes = torch.randint(20, (2, 9)), torch.arange(4)
    few, many = (scored(LlamaGenLikelihood(model), tokens, classes, [1, 3]) for model in (network, wide))
    assert error(few, many.numpy()) < 1e-5
    config = read_config(
        network.state_dict(), ConfigSources((("config.json", {"n_head": 4, "n_kv_head": 2}),)), "a", LlamaGenConfig
    )
    assert (config.kv_heads, config.side) == (2, None)


@pytest.mark.parametrize(("width", "ffn"), SIZES.values(), ids=SIZES)
def test_published_shapes_follow_from_the_width(width, ffn):
    assert ffn_width(width) == ffn


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"n_head": 3}, "cannot have 3 heads"),
        ({"n_head": 64}, "a multiple of 4 wide"),
        ({"n_kv_head": 2}, "n_kv_head is 2 there, and the tensors hold 4"),
        ({"n_layer": 6}, "n_layer is 6 there, and 4 in the tensors"),
        ({"vocab_size": 16384}, "vocab_size is 16384 there, and 128"),
        ({"num_classes": 1000}, "num_classes is 1000 there, and 10"),
        ({"block_size": 15}, "they fill no square"),
        ({"layout": {"tokens": 16}}, "one square grid"),
        ({"layout": {"grids": [[1, 1], [4, 4]]}}, "one square grid"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused_with_both_values(stated, says):
    _, _, tensors = load("llamagen_gpt_tiny")
    values = {"n_head": 4} | stated
    with pytest.raises(CheckpointError) as refused:
        read_config(tensors, ConfigSources((("config.json", values),)), "the file", LlamaGenConfig)
    assert says in str(refused.value)


def test_a_text_conditional_checkpoint_is_refused_by_what_it_lacks():
    _, _, tensors = load("llamagen_gpt_tiny")
    del tensors["cls_embedding.embedding_table.weight"]
    tensors["cls_embedding.cap_proj.fc1.weight"] = torch.zeros(128, 2048)
    with pytest.raises(CheckpointError, match="text-conditional"):
        read_config(tensors, ConfigSources(), "t2i_XL_stage1_256.pt", LlamaGenConfig)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({}, "--image-size 256"),
        ({"image_size": 100}, "cannot read images of 100 pixels"),
        ({"layout": {"grids": [[2, 3]]}}, "one square grid"),
    ],
)
def test_a_tokenizer_needs_a_size_of_images_that_fits(stated, says):
    _, _, tensors = load("llamagen_vq_tiny")
    with pytest.raises(CheckpointError) as refused:
        VQ_FAMILY.build(tensors, ConfigSources((("config.json", stated),)), "vq_ds16_c2i.pt")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (TokenLayout.raster(6, 6), "the model's is a 4x4 grid, the tokenizer's a 6x6 grid"),
        (TokenLayout.multi_scale([1, 2]), "the tokenizer gives scales 1,2"),
    ],
)
def test_a_grid_that_does_not_fit_the_generator_is_refused(gpt, layout, says):
    with pytest.raises(CheckpointError) as refused:
        gpt[2].config.on_grid(layout, "c2i_B_256.pt")
    assert says in str(refused.value)


def test_tokens_of_another_vocabulary_are_refused(gpt, vq):
    tokenizer, config = vq[2], dataclasses.replace(gpt[2].config, vocab_size=16384)
    cpu = torch.device("cpu")
    with pytest.raises(CheckpointError, match="16384 codes, the tokenizer 128"):
        FAMILY.build(config, {}, tokenizer, precision=precisions.FP32, kernels="torch", device=cpu, source="a")
