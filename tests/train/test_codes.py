"""Measures against codes that fall out of use, and how their use is counted."""

from __future__ import annotations

import pytest
import torch

from avarc_cli.layers.code_usage import RecentCodes, ScaleUsage
from avarc_cli.layers.vq_loss import Measures, codebook_loss
from avarc_cli.tokenizers.llamagen_vq.family import FAMILY as LLAMAGEN_VQ
from avarc_cli.tokenizers.maskgit_vqgan.family import FAMILY as MASKGIT_VQ
from avarc_cli.tokenizers.titok.family import FAMILY as TITOK
from avarc_cli.tokenizers.vqvae.family import FAMILY as VQVAE

LEVELS = {"image_size": 16, "vocab_size": 32, "ch": 32, "ch_mult": (1, 1), "blocks": 1}
SHAPES = {
    LLAMAGEN_VQ: LEVELS | {"code_channels": 4},
    MASKGIT_VQ: LEVELS | {"code_channels": 4},
    VQVAE: LEVELS | {"z_channels": 4, "patch_nums": (1, 2, 3, 8)},
    TITOK: {
        "image_size": 16, "patch": 4, "num_tokens": 6, "vocab_size": 32, "code_channels": 4, "width": 64, "depth": 1
    },
}  # fmt: skip
EVERY = pytest.mark.parametrize("family", SHAPES, ids=lambda family: family.name)


def made(family, **measures):
    torch.manual_seed(0)
    loss = family.training_loss(family.new(**SHAPES[family]))
    loss.use(Measures(**measures))
    return loss


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=8):
    return torch.rand(count, 3, 16, 16, generator=seeded()) * 2 - 1


@EVERY
def test_codes_near_a_token_begin_with_its_own(family):
    loss = made(family)
    with torch.no_grad():
        latents = loss.encode(images())
        quantized = loss.quantize(latents)
        near = loss.near(latents, 5)
        tokens = quantized.used_N.view(8, -1)
        assert near.shape == (*tokens.shape, 5) and (near[..., 0] == tokens).float().mean() > 0.99
        assert torch.allclose(loss.codes_of(tokens), quantized.codes, atol=1e-6)


@EVERY
def test_a_perturbation_changes_codes_of_some_images_after_the_loss(family):
    plain, perturbed = (made(family, perturbation=share).reconstruct(images(), 0, 10, seeded()) for share in (0, 0.5))
    assert plain.loss.item() == perturbed.loss.item()
    differs = (plain.images - perturbed.images).abs().amax((1, 2, 3)) > 1e-5
    expected = torch.rand(8, generator=seeded()) < 0.5
    assert torch.equal(differs, expected) and 0 < expected.sum() < 8
    perturbed.images.square().mean().backward()  # the straight-through gradient is there


@EVERY
def test_reanchoring_moves_codes_that_are_not_used(family):
    loss = made(family, reanchor=True)
    before = loss.codebook_VZ.detach().clone()
    loss.reconstruct(images(), 0, 10, seeded())
    used = loss.used_V > 0
    loss.before_update(0, 10)
    moved = (loss.codebook_VZ - before).abs().amax(1)
    assert (moved[~used] > 1e-6).all() and moved[used].sum() < moved[~used].sum()
    again = made(family, reanchor=True)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.moving.share_V, loss.moving.share_V) and again.usage() == loss.usage()


def test_scales_that_are_dropped_are_in_neither_latents_nor_loss():
    loss = made(VQVAE)
    with torch.no_grad():
        latents = loss.encode(images(2))
        whole = loss.quantize(latents)
        steps = list(loss.network.quantize.accumulate(whole.used_N.view(2, -1)))
        loss._kept_B = torch.tensor([3, 4])
        dropped = loss.quantize(latents)
    assert torch.equal(dropped.codes[0], steps[2][0]) and torch.equal(dropped.codes[1], steps[3][1])
    of_each = [[codebook_loss(latents[b], steps[k][b]) for k in range(kept)] for b, kept in enumerate((3, 4))]
    assert dropped.loss.item() == pytest.approx(sum(float(sum(each)) / len(each) for each in of_each) / 2, rel=1e-5)
    loss._kept_B = torch.tensor([4, 4])
    assert loss.quantize(latents).loss.item() == pytest.approx(whole.loss.item(), rel=1e-6)


def test_at_least_three_scales_are_kept_of_a_share_of_the_images():
    kept = made(VQVAE, scale_dropout=0.5)._draw_kept(4000, seeded())
    assert sorted(kept.unique().tolist()) == [3, 4] and (kept == 3).float().mean().item() == pytest.approx(
        0.25, abs=0.02
    )


def test_use_is_counted_by_scale_and_over_a_window():
    usage = ScaleUsage(2, 4)
    usage.add(0, torch.tensor([[0], [1]]))
    usage.add(1, torch.tensor([[0, 1, 1], [2, 2, 2]]))
    assert torch.allclose(usage.counts_KV, torch.tensor([[1.0, 1, 0, 0], [0.1, 0.2, 0.3, 0]]))
    assert usage.percent(6).tolist() == [50, 50], "a code is in use from 0.08 * 6 / 4"
    recent = RecentCodes(10)
    recent.add(torch.arange(5))
    assert recent.share() == 0.5
    recent.add(torch.full((70000,), 7))
    assert recent.share() == 0.1 and len(recent.window) == 65536
