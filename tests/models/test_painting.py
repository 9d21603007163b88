"""Drawing given known tokens: the distribution against all outcomes, enumerated, on tiny models."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from avarc_cli.layers.sampling import draw, gumbel, restrict
from avarc_cli.layout import TokenLayout
from avarc_cli.likelihood import Known
from avarc_cli.models.maskgit.config import MaskGITConfig
from avarc_cli.models.maskgit.likelihood import MaskGITLikelihood
from avarc_cli.models.maskgit.sampling import Schedule
from avarc_cli.models.maskgit.uvit import UViT
from avarc_cli.models.var import reference
from avarc_cli.models.var.config import VARConfig
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.network import VAR
from avarc_cli.models.var.sampling import draw_scales
from avarc_cli.sampling.painting import kept_cells
from avarc_cli.tokenizers.vqvae.network import MultiScaleQuantizer

DRAWN = 4000


def streams(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def check_frequencies(drawn, probability):
    """Compare what was drawn with probabilities of outcomes, a dictionary of tuples that sum to 1."""
    assert sum(probability.values()) == pytest.approx(1, abs=1e-4)
    found = dict.fromkeys(probability, 0)
    for outcome in drawn:
        found[outcome] += 1
    for outcome, p in probability.items():
        assert abs(found[outcome] / len(drawn) - p) < 4.5 * math.sqrt(p * (1 - p) / len(drawn)) + 1e-4, outcome


def tiny_var():
    torch.manual_seed(3)
    sides = (1, 2, 3)
    config = VARConfig(depth=2, width=16, heads=2, num_classes=2, patch_nums=sides, vocab_size=3, z_channels=4)
    var = VAR(config).eval()
    for parameter in var.parameters():  # so that tokens say much about those after them
        parameter.data = torch.randn_like(parameter) * 0.7
    var.head.weight.data *= 0.15
    quantizer = MultiScaleQuantizer(3, 4, sides)
    return VARLikelihood(var.requires_grad_(False), quantizer.requires_grad_(False))


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_a_var_draws_the_other_tokens_from_their_distribution_given_the_known_ones(guidance):
    model, class_id = tiny_var(), 1
    own, hidden = np.array([2, 0, 1, 2, 0, 1, 1, 0, 2, 2, 0, 1, 2, 0]), [0, 2, 9]  # one of each scale
    kept = np.ones(14, dtype=bool)
    kept[hidden] = False
    ids = torch.full((DRAWN,), class_id)
    tokens = model.sample(ids, generators=streams(DRAWN), guidance=guidance, known=Known(own, kept)).numpy()
    assert (tokens[:, kept] == own[kept]).all()

    outcomes = list(itertools.product(range(3), repeat=3))
    images = torch.from_numpy(np.tile(own, (len(outcomes), 1)))
    images[:, hidden] = torch.tensor(outcomes)
    of_class, _ = model.token_logits(images, torch.full((27,), class_id))
    of_none, _ = model.token_logits(images, torch.full((27,), 2))
    t_L = guidance * torch.repeat_interleave(torch.arange(3) / 2, torch.tensor([1, 4, 9]))[:, None]
    log_p = ((1 + t_L) * of_class - t_L * of_none).log_softmax(-1).gather(-1, images[..., None])[..., 0]
    probability = log_p[:, hidden].sum(1).exp().tolist()
    assert max(probability) < 0.9, "not a matter of course"
    check_frequencies(list(map(tuple, tokens[:, hidden].tolist())), dict(zip(outcomes, probability, strict=True)))


def test_a_maskgit_proposes_and_hides_again_with_the_probabilities_of_its_schedule():
    """Two of four tokens in two steps: both are drawn, the less sure one is hidden, and drawn once more."""
    torch.manual_seed(0)
    config = MaskGITConfig(width=32, depth=2, heads=2, num_classes=2, num_tokens=4, vocab_size=3, hidden=64)
    network = UViT(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * 0.5
    model = MaskGITLikelihood(network)
    model.schedule = Schedule(steps=2, temperature=2.0, guidance=0.0)
    own, kept, hidden = np.array([1, 2, 0, 1]), np.array([True, False, True, False]), [1, 3]
    tokens = model.sample(
        torch.ones(DRAWN, dtype=torch.int64), generators=streams(DRAWN), guidance=0.0, known=Known(own, kept)
    ).numpy()
    assert (tokens[:, kept] == own[kept]).all()

    def logits(first, second):
        ids = torch.tensor([[1, first, 0, second]])
        return network.logits(torch.tensor([1]), ids)[0, hidden].double()

    noise, tau = 2.0 * 0.5, 0.5 + 0.8 * 0.5  # after half of the steps
    proposal = logits(config.mask, config.mask) / tau
    p = (proposal / noise).softmax(-1)
    probability = dict.fromkeys(itertools.product(range(3), repeat=2), 0.0)
    for a, b in probability:
        first_is_less_sure = torch.sigmoid((proposal[1, b] - proposal[0, a]) / noise)
        proposed = p[0, a] * p[1, b]
        again = int(logits(config.mask, b)[0].argmax()), int(logits(a, config.mask)[1].argmax())
        probability[again[0], b] += float(proposed * first_is_less_sure)
        probability[a, again[1]] += float(proposed * (1 - first_is_less_sure))
    check_frequencies(list(map(tuple, tokens[:, hidden].tolist())), probability)


def test_more_smooth_is_a_gumbel_softmax_over_codes(tiny):
    """Against a loop without a cache, by the plain network, with the formulas written out."""
    model, labels, guidance = tiny.likelihood(), torch.tensor([1, 7]), 2.0
    weights, quantizer, sides = model.checkpoint_tensors(), model.quantizer, tiny.patch_nums
    how = {"guidance": guidance, "top_k": 40, "top_p": 0.95}
    ours = model.sample_latents(labels, generators=streams(2), **how)
    generators, latents, inputs = streams(2), torch.zeros_like(ours), torch.empty(2, 0, ours.shape[1])
    for k, side in enumerate(sides):
        r = k / (len(sides) - 1)
        of_class, of_none = (
            reference.logits(weights, inputs, ids)[:, -(side**2) :] for ids in (labels, torch.full((2,), 10))
        )
        logits = restrict((1 + guidance * r) * of_class - guidance * r * of_none, 40, 0.95)
        draw(logits, generators)  # the codes, which are not used
        weight = ((logits * (1 + r) + gumbel(logits, generators)) / max(0.27 * (1 - r * 0.95), 0.005)).softmax(-1)
        mixed = torch.einsum("btv,vz->btz", weight, quantizer.embedding.weight)
        latents = latents + quantizer.contribution_of(k, mixed.unflatten(1, (side, side)))
        if k + 1 < len(sides):
            following = quantizer.shrink(k + 1, latents).flatten(2).transpose(1, 2)
            inputs = torch.cat([inputs, following], dim=1)
    assert torch.allclose(ours, latents, atol=1e-3)  # weights are sharp: 70 times the rounding of logits


def test_more_smooth_with_one_code_left_is_that_code(tiny):
    model, labels = tiny.likelihood(), torch.tensor([1, 7])
    latents = model.sample_latents(labels, generators=streams(2), top_k=1)
    tokens, same = draw_scales(model.var, model.quantizer, labels, generators=streams(2), top_k=1)
    assert torch.allclose(latents, same, atol=1e-5)
    *_, again = model.quantizer.accumulate(tokens)
    assert torch.allclose(again, same, atol=1e-5)


def test_known_tokens_hold_for_more_smooth_too(tiny):
    model, own = tiny.likelihood(), tiny.tokens()[0].numpy()
    latents = model.sample_latents(torch.tensor([1]), generators=streams(1), known=Known(own, np.ones(30, dtype=bool)))
    *_, same = model.quantizer.accumulate(torch.from_numpy(own)[None])
    assert torch.allclose(latents, same, atol=1e-5)


def test_a_cell_is_painted_where_the_mask_covers_half_of_it():
    painted = np.zeros((16, 16), dtype=bool)
    painted[:, :6] = True  # of cells of 4 pixels: one column, and half of the next
    kept = kept_cells(TokenLayout.raster(4, 4), painted)
    assert kept.reshape(4, 4).tolist() == [[False, False, True, True]] * 4
    scales = kept_cells(TokenLayout.multi_scale((1, 2, 4)), painted)
    assert scales[0], "one token for all is kept"
    assert scales[1:5].reshape(2, 2).tolist() == [[False, True]] * 2
    assert scales[5:].tolist() == kept.tolist()
