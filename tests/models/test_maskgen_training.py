"""Training of MaskGen KL: the published loss, and what is random in it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill

from avarc_cli.errors import UsageError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.rows import Rows
from avarc_cli.models.maskgen import latent_loss
from avarc_cli.models.maskgen.family import KL
from avarc_cli.models.maskgen.initialize import initialize
from avarc_cli.models.maskgen.latent_likelihood import MaskGenKLLikelihood
from avarc_cli.models.maskgen.latent_network import MaskGenKL
from avarc_cli.objective import Draw, Objective
from avarc_cli.text.features import CaptionFeatures


def features(text, pooled, empty=None):
    length_R = torch.full((len(text),), text.shape[1])
    names = tuple(map(str, range(len(text))))
    return CaptionFeatures(captions=names, sequence_RTD=text, length_R=length_R, pooled_RE=pooled, empty=empty)


@pytest.fixture(scope="module")
def golden():
    """(tolerance, arrays, model, tokens, features)."""
    meta, arrays = fill.load_golden(GOLDEN / "maskgen_kl_tiny.npz")
    tensors = {k: torch.from_numpy(v) for k, v in fill.state_dict(meta["keys"], meta["seed"], meta["scales"]).items()}
    given = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
    stated = ConfigSources((("short captions", {"text_context_length": 9}), ("config.json", meta["config"])))
    config = KL.read_config(tensors, stated, "a file")
    model = MaskGenKLLikelihood(MaskGenKL.from_state_dict(config, tensors, source="a file").requires_grad_(True))
    none = features(torch.zeros(1, 9, 48), torch.zeros(1, 48))
    captions = features(given["text"], given["text_pooled"][:, 0], none)
    return (
        meta["tolerance"]["other_implementation"]["atol"],
        given,
        model,
        given["latent"] / config.scale_factor,
        captions,
    )


def draw_of(given):
    """The golden masks, with one try of each token."""
    shape = (2, 8, 1)
    return Draw(
        hidden_BL=given["mask"] == 1, step_BLM=given["t"].view(shape), noise_BLMZ=given["noise"].view(*shape, 4)
    )


def loss_of(golden, draw, rows=slice(None), dropped=(False, False)):
    _, given, model, tokens, captions = golden
    part = features(captions.sequence_RTD[rows], captions.pooled_RE[rows], captions.empty)
    given_scores = given["aes_score"].expand(2)[rows]
    dropped_B = torch.tensor(dropped)[rows]
    return model.caption_loss(tokens[rows], part, dropped_B, Objective(), draw, score_B=given_scores)


def test_the_loss_is_the_mean_of_the_references_terms_over_hidden_tokens(golden):
    tolerance, given, *_ = golden
    draw = draw_of(given)
    hidden = draw.hidden_BL.flatten()
    assert 0 < hidden.sum() < 16 and (given["t"][hidden] > 0).all()
    loss = loss_of(golden, draw)
    terms = given["mse"] + given["vb_bits"]
    assert loss.mean.item() == pytest.approx(terms[hidden].mean().item(), rel=tolerance)
    assert loss.shown["mse"] == pytest.approx(given["mse"][hidden].mean().item(), rel=tolerance)


def test_the_bound_teaches_the_variance_alone(golden):
    _, given, model, *_ = golden
    final = model.transformer.head.final_layer.linear
    mse = loss_of(golden, draw_of(given)).mean
    of_all = torch.autograd.grad(mse, final.weight)[0]
    first = draw_of(given)._replace(step_BLM=torch.zeros(2, 8, 1, dtype=torch.int64))
    loss = loss_of(golden, first)
    of_first = torch.autograd.grad(loss.mean, final.weight)[0]
    assert of_all[4:].abs().max() > 0  # rows of v
    assert loss.shown["bound"] == 0 and of_first[4:].abs().max() == 0, "at the first step there is no bound"
    assert of_first[:4].abs().max() > 0


def test_a_dropped_caption_is_the_empty_one(golden):
    _, given, model, tokens, captions = golden
    dropped = loss_of(golden, draw_of(given), dropped=(True, True)).mean
    empty = features(captions.empty.sequence_RTD.expand(2, -1, -1), captions.empty.pooled_RE.expand(2, -1))
    empty = features(empty.sequence_RTD, empty.pooled_RE, captions.empty)
    none = torch.zeros(2, dtype=torch.bool)
    score = given["aes_score"].expand(2)
    same = model.caption_loss(tokens, empty, none, Objective(), draw_of(given), score_B=score).mean
    assert dropped.item() == pytest.approx(same.item(), rel=1e-6)
    assert dropped.item() != pytest.approx(loss_of(golden, draw_of(given)).mean.item(), rel=1e-3)


def test_parts_of_a_batch_have_the_mean_of_the_whole(golden):
    model = golden[2]
    draw = model.draw(2, Objective(), torch.Generator().manual_seed(3))
    whole = loss_of(golden, draw).mean.item()
    parts = [loss_of(golden, draw.take(Rows(i, i + 1, 2)), slice(i, i + 1)).mean.item() for i in range(2)]
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-5)


def test_as_many_tokens_are_hidden_in_every_image_by_the_law_of_the_reference():
    counts = []
    for seed in range(400):
        draw = latent_loss.draw(3, 8, 4, torch.Generator().manual_seed(seed))
        hidden_B = draw.hidden_BL.sum(1)
        assert (hidden_B == hidden_B[0]).all() and draw.noise_BLMZ.shape == (3, 8, 4, 4)
        counts.append(int(hidden_B[0]))
    law = [1 - math.cos(math.pi / 2 * k / 8) for k in range(9)]  # P(as many or fewer are hidden)
    assert all(abs(np.mean(np.array(counts) <= k) - law[k]) < 0.08 for k in range(1, 9))


def test_a_new_model_begins_without_noise_and_every_weight_learns(golden):
    _, given, model, tokens, captions = golden
    torch.manual_seed(0)
    new = MaskGenKLLikelihood(initialize(MaskGenKL(model.config)))
    scores = given["aes_score"].expand(2)
    none = torch.zeros(2, dtype=torch.bool)
    weights = list(new.network.parameters())
    for step in range(5):
        loss = new.caption_loss(tokens, captions, none, Objective(), draw_of(given), score_B=scores)
        if step == 0:
            hidden = draw_of(given).hidden_BL.flatten()
            assert loss.shown["mse"] == pytest.approx(given["noise"][hidden].square().mean().item(), rel=1e-5)
        gradients = torch.autograd.grad(loss.mean, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.1 * gradient
    named = zip(new.network.named_parameters(), gradients, strict=True)
    silent = [name for (name, _), gradient in named if not gradient.any()]
    assert {name.rsplit(".", 1)[0] for name in silent} <= {
        f"decoder_blocks.{model.config.depth - 1}.attn.add_q_proj",  # which nothing reads
        *(name.rsplit(".", 1)[0] for name in silent if name.endswith("add_k_proj.bias") or name.endswith("to_k.bias")),
    }


def test_scores_are_for_models_that_are_given_one(golden):
    _, given, model, tokens, captions = golden
    unscored = MaskGenKLLikelihood(initialize(MaskGenKL(replace(model.config, score_width=0))))
    none = torch.zeros(2, dtype=torch.bool)
    with pytest.raises(UsageError, match="this one is not"):
        unscored.caption_loss(tokens, captions, none, Objective(), draw_of(given), score_B=torch.ones(2))
    assert unscored.caption_loss(tokens, captions, none, Objective(), draw_of(given)).mean.isfinite()
