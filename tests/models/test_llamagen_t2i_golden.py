"""Text-conditional LlamaGen: parity with the reference implementation, within the file's tolerances."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill

from avarc_cli.added_classes import base_of
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.families import GENERATORS, family_of_shape
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.models.llamagen.config import read_config
from avarc_cli.models.llamagen.network import TABLE
from avarc_cli.models.llamagen_t2i import reference
from avarc_cli.models.llamagen_t2i.config import NULL, CaptionLlamaGenConfig
from avarc_cli.models.llamagen_t2i.likelihood import CaptionLlamaGenLikelihood
from avarc_cli.models.llamagen_t2i.network import CaptionLlamaGen
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function
from avarc_cli.text.features import CaptionFeatures, TextInput


def load(name):
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    tensors = {key: torch.from_numpy(value) for key, value in filled.items()}
    return meta, {key: torch.from_numpy(array) for key, array in arrays.items() if array.ndim}, tensors


def config_of(tensors, stated):
    return read_config(tensors, ConfigSources((("config.json", stated),)), "the file", CaptionLlamaGenConfig)


@pytest.fixture(scope="module")
def golden():
    """(meta, arrays as tensors, model without captions)."""
    meta, arrays, tensors = load("llamagen_t2i_tiny")
    tensors[TABLE] = torch.zeros(26, 16, 2)  # in some published files, and not used
    network = CaptionLlamaGen.from_state_dict(config_of(tensors, meta["config"]), tensors, source="t2i")
    return meta, arrays, CaptionLlamaGenLikelihood(network)


def features(arrays, rows=slice(None)):
    length_R = arrays["lengths"][rows]
    names = tuple(f"caption {i}" for i in range(len(length_R)))
    return CaptionFeatures(captions=names, sequence_RTD=arrays["encoder_features"][rows], length_R=length_R)


def error(ours, theirs) -> float:
    return float((ours.detach().double() - torch.as_tensor(theirs).double()).abs().max())


def scored(model, tokens, classes, stops):
    """log p (B, C, L) of every sequence under every class."""
    pairs = torch.cartesian_prod(torch.arange(len(tokens)), torch.as_tensor(classes))
    state = model.begin(tokens, pairs[:, 0], pairs[:, 1])
    runs = [model.extend(state, stop, keep_cache_segments=stop) for stop in stops]
    return torch.cat(runs, dim=1).view(len(tokens), len(classes), -1)


@pytest.mark.parametrize("stops", [[4], [1, 2, 3, 4], [2, 4]])
def test_token_log_probabilities_are_the_references_however_the_rows_are_taken(golden, stops):
    meta, arrays, model = golden
    ours = scored(model.with_captions(features(arrays)), arrays["tokens"], range(4), stops)
    assert error(ours, arrays["logp"]) <= meta["tolerance"]["logp"]
    assert error(ours.double().sum(-1), arrays["loglik"]) <= meta["tolerance"]["loglik"]
    assert torch.equal(ours.sum(-1).argmax(1), arrays["pred"])


@pytest.mark.parametrize("row", range(4))
def test_the_null_caption_is_the_references_for_captions_of_one_length(golden, row):
    meta, arrays, model = golden
    ours = model.with_captions(features(arrays, [row]))
    assert (ours.num_classes, ours.unconditional) == (1, 1)
    null = scored(ours, arrays["tokens"], [1], [4])[:, 0]
    assert error(null, arrays["logp_null"][:, row]) <= meta["tolerance"]["logp_null"]
    assert error(null.double().sum(-1), arrays["loglik_null"][:, row]) <= meta["tolerance"]["loglik_null"]


def test_the_null_caption_has_as_many_positions_as_the_longest_caption(golden):
    meta, arrays, model = golden
    for rows in ([1, 2, 3], [3, 1]):
        ours = model.with_captions(features(arrays, rows))
        null = scored(ours, arrays["tokens"], [ours.unconditional], [4])[:, 0]
        assert error(null, arrays["logp_null"][:, 3]) <= meta["tolerance"]["logp_null"]  # caption 3 is the longest


def test_embeddings_rotations_and_logits_are_the_references(golden):
    meta, arrays, model = golden
    gpt, length_R = model.gpt, arrays["lengths"]
    assert error(gpt.cls_embedding.cap_proj(arrays["caption_features"]), arrays["embedded"]) <= 1e-5
    assert error(torch.cat([torch.zeros(9, 16, 2), gpt.table_LJ2]), arrays["rope"]) <= meta["tolerance"]["rope"]
    prefix = gpt.prefix(arrays["encoder_features"][[1]], length_R[[1]])
    hidden = gpt.hidden_after(prefix, gpt.token_inputs(arrays["tokens"][[0], :-1], 1))
    logits = gpt.output(torch.cat([prefix.hidden_RC[:, None], hidden], dim=1))
    assert error(logits, arrays["logits"]) <= meta["tolerance"]["logits"]


@pytest.mark.parametrize(("guided", "expected"), [(False, "greedy_cfg1"), (True, "greedy_cfg2")])
def test_the_likeliest_tokens_are_drawn_as_by_the_reference(golden, guided, expected):
    meta, arrays, model = golden
    guidance = meta["cfg_scale"] - 1 if guided else 0.0
    captions, generators = model.with_captions(features(arrays)), [torch.Generator() for _ in range(4)]
    drawn = captions.sample(torch.arange(4), generators=generators, guidance=guidance, top_k=1)
    assert torch.equal(drawn, arrays[expected])


def test_the_training_loss_is_the_references_and_gradients_reach_every_tensor(golden):
    _, arrays, model = golden
    network = CaptionLlamaGen.from_state_dict(model.config, model.gpt.state_dict(), source="t2i")
    copies = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    network.load_state_dict(copies, assign=True)
    trained = CaptionLlamaGenLikelihood(network.requires_grad_(True))
    rows = arrays["train_captions"]
    log_p = trained.caption_log_prob(arrays["tokens"], arrays["encoder_features"][rows], arrays["lengths"][rows])
    loss = -log_p[arrays["train_valid"].bool()].mean()
    assert error(loss, fill.load_golden(GOLDEN / "llamagen_t2i_tiny.npz")[1]["train_loss"]) <= 1e-4
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_the_plain_implementation_is_the_references(golden):
    _, arrays, model = golden
    w, length_R = model.gpt.state_dict(), arrays["lengths"]
    padded = reference.padded_left(arrays["encoder_features"], length_R, 10)
    assert torch.equal(padded, arrays["caption_features"])
    null = w[NULL].expand(4, -1, -1)
    for tokens, expected, expected_null in zip(arrays["tokens"], arrays["logp"], arrays["logp_null"], strict=True):
        ours = reference.token_log_probs(w, tokens, padded, length_R, heads=4)
        ours_null = reference.token_log_probs(w, tokens, null, length_R, heads=4)
        assert error(ours, expected) <= 1e-4 and error(ours_null, expected_null) <= 1e-4


def test_a_fork_continues_with_other_tokens_as_if_scored_from_the_start(golden):
    _, arrays, model = golden
    captions, tokens = model.with_captions(features(arrays)), arrays["tokens"]
    others = tokens.clone()
    others[:, 8:] = tokens.flip(0)[:, 8:]  # the same first two rows
    state = captions.begin(tokens, torch.arange(4), torch.arange(4))
    captions.extend(state, 3, keep_cache_segments=3)
    forked = captions.fork(state, torch.tensor([3, 1]), others, torch.tensor([3, 1]), 2)
    ours = captions.extend(forked, 4, keep_cache_segments=0)
    whole = scored(captions, others[[3, 1]], [3, 1], [4])
    assert error(ours, whole[[0, 1], [0, 1], 8:]) < 1e-5


def test_selected_pairs_go_on_joined_as_they_would_alone(golden):
    _, arrays, model = golden
    captions = model.with_captions(features(arrays))
    several = captions.begin(arrays["tokens"], torch.arange(4), torch.arange(4))
    one = captions.begin(arrays["tokens"][2:], torch.tensor([0]), torch.tensor([2]))
    for state in (several, one):
        captions.extend(state, 2, keep_cache_segments=2)
    joined = captions.join([captions.select(several, torch.tensor([3, 0])), one])
    ours = captions.extend(joined, 4, keep_cache_segments=0)
    assert error(ours, arrays["logp"][[3, 0, 2], [3, 0, 2], 8:]) < 1e-4


@pytest.mark.parametrize("per_batch", [40, 10_000])
def test_staged_scores_are_those_of_exhaustive_scoring(golden, per_batch):
    _, arrays, model = golden
    captions, tokens_GSL = model.with_captions(features(arrays)), arrays["tokens"][:, None].numpy()

    def scores(plan):
        request = ScoringRequest(
            candidates=np.arange(4),
            plan=parse_plan(plan, segments=4, candidates=4, samples=1),
            score=score_function("log-likelihood"),
            log_prior=np.zeros(4),
            tokens_per_batch=per_batch,
        )
        return score_group(captions, tokens_GSL, request)

    for full, staged in zip(scores("exhaustive"), scores("1:3,2:2,4:1"), strict=True):
        last = staged.stages[-1]
        assert np.abs(last.scores - full.scores[last.candidates]).max() < 1e-4
        assert staged.tokens_scored < full.tokens_scored


def test_a_picture_does_not_depend_on_the_others_that_are_drawn(golden):
    _, arrays, model = golden
    captions = model.with_captions(features(arrays))
    together = captions.sample(torch.arange(4), generators=[torch.Generator().manual_seed(i) for i in range(4)])
    alone = captions.sample(torch.tensor([2]), generators=[torch.Generator().manual_seed(2)])
    assert torch.equal(together[[2]], alone)


@pytest.mark.parametrize(("name", "most"), [("bf16", 0.05), ("int8", 0.1)])  # nats; int8 without VNNI has 7 bits
def test_other_precisions_stay_near(golden, name, most):
    _, arrays, model = golden
    network = CaptionLlamaGen.from_state_dict(model.config, model.gpt.state_dict(), source="t2i")
    near = CaptionLlamaGenLikelihood(network.set_precision(precisions.find(name, torch.device("cpu"))))
    ours = scored(near.with_captions(features(arrays)), arrays["tokens"], range(4), [1, 4])
    assert (ours - arrays["logp"]).abs().mean() < most  # the tokens differ by nats


def test_memory_counts_captions_and_what_is_added_to_scores(golden):
    _, arrays, model = golden
    captions = model.with_captions(features(arrays))
    kept = 5 * (8 + 4 * 128 * 4 + 128 * 4)  # of each caption its length, mean values and last hidden state
    assert captions.resident_bytes - model.resident_bytes == kept
    assert model.bytes_per_token(cached=True) == 2 * 4 * 128 * 4


def test_captions_of_more_positions_than_the_model_has_are_refused(golden):
    _, arrays, model = golden
    wide = torch.cat([arrays["encoder_features"]] * 2, dim=1)
    kept = dataclasses.replace(features(arrays), sequence_RTD=wide)  # more positions, all of them padding
    assert error(model.with_captions(kept).captions.hidden_RC, model.with_captions(features(arrays)).captions[2]) < 1e-5
    with pytest.raises(UsageError, match="11 positions, the model reads 10"):
        model.with_captions(dataclasses.replace(kept, length_R=torch.tensor([1, 11, 2, 3])))
    with pytest.raises(UsageError, match="aesthetic"):
        model.with_captions(features(arrays), aesthetic_score=6.0)


def test_without_captions_there_is_nothing_to_score(golden):
    _, arrays, model = golden
    assert (model.num_classes, model.unconditional) == (0, None)
    assert model.text == TextInput(encoder="flan-t5-xl", positions=10, width=24)
    state = model.begin(arrays["tokens"], torch.arange(1), torch.arange(1))
    with pytest.raises(ValueError, match="with_captions"):
        model.extend(state, 4, keep_cache_segments=0)
    with pytest.raises(UsageError, match="classes cannot be added to a model of captions"):
        base_of(model)


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_a_published_file_is_recognized_and_loads_with_its_tokenizer(golden, tmp_path, wrapper):
    meta, arrays, _ = golden
    _, _, vq = load("llamagen_vq_tiny")
    tensors = load("llamagen_t2i_tiny")[2] | {TABLE: torch.zeros(26, 16, 2)}
    torch.save({wrapper: tensors} if wrapper else tensors, tmp_path / "t2i_XL_stage1_256.pt")
    torch.save({"model": vq}, tmp_path / "vq_ds16_t2i.pt")
    (tmp_path / "heads.json").write_text('{"n_head": 4}')
    spec = ModelSpec(
        str(tmp_path / "t2i_XL_stage1_256.pt"),
        str(tmp_path / "vq_ds16_t2i.pt"),
        model_config=tmp_path / "heads.json",
        image_size=64,
    )
    loaded = load_model(spec, unbound=True)
    assert loaded.family == "llamagen-t2i" and loaded.likelihood.text.positions == 10
    ours = scored(loaded.likelihood.with_captions(features(arrays)), arrays["tokens"], range(4), [4])
    assert error(ours, arrays["logp"]) <= meta["tolerance"]["logp"]


def test_recognized_by_its_tensors_among_the_families(golden):
    tensors = load("llamagen_t2i_tiny")[2]
    assert GENERATORS.recognize(tensors, None, "a file").name == "llamagen-t2i"
    assert family_of_shape("llamagen-t2i-xl") == ("llamagen-t2i", "xl")
    assert family_of_shape("llamagen-xl") == ("llamagen", "xl")


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"caption_dim": 2048}, "caption_dim is 2048 there, and 24 in the tensors"),
        ({"cls_token_num": 120}, "cls_token_num is 120 there, and 10"),
        ({"n_layer": 6}, "n_layer is 6 there, and 4"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused_with_both_values(stated, says):
    with pytest.raises(CheckpointError) as refused:
        config_of(load("llamagen_t2i_tiny")[2], {"n_head": 4} | stated)
    assert says in str(refused.value)


def test_an_incomplete_file_is_refused_by_what_it_misses(golden):
    _, _, tensors = load("llamagen_t2i_tiny")
    del tensors["cls_embedding.cap_proj.fc2.weight"]
    with pytest.raises(CheckpointError, match=r"cap_proj\.fc2"):
        CaptionLlamaGen.from_state_dict(golden[2].config, tensors, source="t2i_XL_stage1_256.pt")
