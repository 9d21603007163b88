"""Training against a discriminator: who learns when, what a checkpoint keeps, and what the networks are."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avarc_cli.errors import Interrupted
from avarc_cli.layers.loss_weights import VQGAN
from avarc_cli.tokenizers.llamagen_vq.family import FAMILY
from avarc_cli.tokenizers.vqvae.loss import VQVAELoss
from avarc_cli.train.adversarial import AdversarialStep, Opponent, Part
from avarc_cli.train.discriminators import augment
from avarc_cli.train.discriminators.blur import BlurDiscriminator
from avarc_cli.train.discriminators.dino import DinoDiscriminator
from avarc_cli.train.discriminators.patchgan import PatchGAN
from avarc_cli.train.discriminators.vit import ViT
from avarc_cli.train.loop import train
from avarc_cli.train.perceptual.convnext import ConvNeXt
from avarc_cli.train.recipe import Recipe

SHAPE = {"image_size": 16, "vocab_size": 8, "code_channels": 4, "ch": 32, "ch_mult": (1, 1), "blocks": 1}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=4, seed=0, side=16):
    return torch.rand(count, 3, side, side, generator=seeded(seed)) * 2 - 1


def setting(start=0, adversary=VQGAN.adversary, network=None):
    torch.manual_seed(0)
    tokenizer = FAMILY.new(**SHAPE)
    opponent = Opponent(network or PatchGAN(4, 2), adversary, start=start)
    return tokenizer, AdversarialStep(FAMILY.training_loss(tokenizer), lambda step: 1e-3, opponent=opponent)


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_tokenizers_loss_leaves_the_discriminator_alone_and_its_update_the_tokenizer():
    tokenizer, step = setting()
    ours, theirs = weights(tokenizer), weights(step.opponent.network)
    loss, shown = step(images(), 0, 10, seeded())
    loss.backward()
    assert all(p.grad is None for p in step.opponent.network.parameters())
    assert same(theirs, weights(step.opponent.network))
    gradients = [p.grad.clone() for p in tokenizer.parameters()]
    step.before_update(0, 10)
    assert same(gradients, [p.grad for p in tokenizer.parameters()]) and same(ours, weights(tokenizer))
    assert not same(theirs, weights(step.opponent.network))
    assert {"rmse", "vq"} == set(shown)
    assert {"d_loss", "d_right", "d_norm"} <= set(step(images(), 1, 10, seeded())[1])


def test_before_its_start_the_discriminator_changes_nothing():
    for adversary in (VQGAN.adversary, replace(VQGAN.adversary, runs_before_start=False)):
        _, step = setting(start=3, adversary=adversary)
        without = AdversarialStep(step.loss, step.rate)
        theirs, loss = weights(step.opponent.network), step(images(), 2, 10, seeded())[0]
        assert loss.item() == without(images(), 2, 10, seeded())[0].item()
        loss.backward()
        step.before_update(2, 10)
        assert same(theirs, weights(step.opponent.network))
        assert bool(step.opponent.optimizer.state) == adversary.runs_before_start
        assert step(images(), 3, 10, seeded())[0].item() != loss.item()


def test_images_that_are_only_measured_teach_nothing():
    _, step = setting(adversary=replace(VQGAN.adversary, adaptive=(0.0, 1e4)))
    before = {k: v.clone() for k, v in step.opponent.network.state_dict().items()}
    with torch.no_grad():
        value, shown = step(images(), 0, 10, seeded())
    step.before_update(0, 10)
    after = step.opponent.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before) and step.last_update == {}
    assert set(shown) == {"rmse", "vq"} and value.item() == pytest.approx(shown["rmse"] ** 2 + shown["vq"], rel=1e-5)
    assert step.loss.used_V.sum() == 0


def test_the_weight_rises_and_the_blur_fades():
    opponent = Opponent(PatchGAN(4, 1), VQVAELoss.published.adversary, start=10, ramp=4)
    assert [opponent.strength(step) for step in (9, 10, 11, 14, 99)] == [0, 0, 0.25, 1, 1]
    assert [opponent._blur(step) for step in (10, 14, 18, 30)] == [1, 0.5, 0, 0]
    assert [opponent.runs(step) for step in (9, 10, 11)] == [False, False, True]


def test_a_batch_in_parts_updates_as_the_whole_one_does():
    real, fake, after = images(6), images(6, seed=1), []
    for cuts in ((0, 6), (0, 1, 4, 6)):
        torch.manual_seed(0)
        opponent = Opponent(BlurDiscriminator(32, 2), replace(VQGAN.adversary, clip=1e9), start=0)
        parts = [Part(real[a:b], fake[a:b], 0, seeded()) for a, b in pairwise(cuts)]
        after.append((opponent.update(parts, 1e-3), [p.grad.clone() for p in opponent.network.parameters()]))
    (whole, gradients), (of_parts, others) = after
    assert of_parts == pytest.approx(whole, rel=1e-4)
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-4) for a, b in zip(gradients, others, strict=True))


def test_a_training_that_was_interrupted_ends_with_the_same_weights(tmp_path):
    recipe = Recipe(steps=6, batch_size=4, lr=1e-3, save_every=2)

    def fit(checkpoint, until=None):
        adversary = replace(VQGAN.adversary, lecam=0.1, adaptive=(0.0, 1e4))
        tokenizer, step = setting(start=1, adversary=adversary)

        def loss_of_rows(number, rows):
            if number == until:
                raise KeyboardInterrupt
            return step(rows.take(images(seed=number)), number, recipe.steps, seeded(number))

        train(tokenizer, loss_of_rows, recipe, checkpoint, lambda *a: None, subject={"what": "it"}, kept=step)
        return weights(tokenizer) + weights(step.opponent.network) + [step.opponent.lecam.fake]

    whole = fit(tmp_path / "a.ckpt")
    with pytest.raises(Interrupted):
        fit(tmp_path / "b.ckpt", until=5)
    assert same(whole, fit(tmp_path / "b.ckpt"))


def test_the_dino_discriminator_trains_its_heads_only_together_on_real_and_fake():
    torch.manual_seed(0)
    network = DinoDiscriminator(ViT(3).requires_grad_(False))
    assert all(name.startswith("heads.") for name in network.state_dict())
    opponent = Opponent(network, VQVAELoss.published.adversary, start=0)
    part = Part(images(2, side=24), images(2, seed=1, side=24).requires_grad_(), 0, seeded())
    loss, shown = opponent.loss(part)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.ndim > 1)
    again, _ = opponent.loss(Part(part.real, part.fake, 0, seeded()))
    assert again.item() == pytest.approx(loss.item(), rel=0.2) and 0 <= shown["d_right"] <= 1


def test_augmented_images_are_shifted_recolored_and_cut():
    x = images(64, side=20)
    changed = augment.augment(x, seeded(), cutout=0.2)
    assert changed.shape == x.shape and torch.equal(changed, augment.augment(x, seeded(), cutout=0.2))
    boxes = (augment.augment(torch.ones_like(x), seeded(3), cutout=0.2) == 0).all(1).sum((1, 2))
    whole = augment._cut(torch.ones_like(x), torch.full((64,), 0.5), torch.full((64,), 0.5), 0.2)
    assert (whole[:, 0] == 0).sum((1, 2)).tolist() == [16] * 64 and boxes.min() > 0
    middle = torch.full((2,), 0.5)
    assert torch.equal(augment._shift(x[:2], middle, middle), x[:2]), "the middle of the range is no shift"
    most = augment._shift(x[:1], torch.tensor([0.999]), middle[:1])
    assert torch.equal(most[..., :-2, :], x[:1, :, 2:]) or torch.equal(most[..., :-3, :], x[:1, :, 3:])
    half = torch.full((1, 1, 1, 1), 0.5)
    assert torch.allclose(augment._recolor(x[:1], half, half, half), x[:1], atol=1e-6), "nor is it another color"


def test_a_blur_keeps_flat_images_and_smooths_others():
    flat = torch.full((1, 3, 32, 32), 0.3)
    assert torch.allclose(augment.blur(flat, 1.0), flat, atol=1e-6)
    x = images(1, side=32)
    rough = [augment.blur(x, strength).diff(dim=-1).abs().mean().item() for strength in (0.0, 0.3, 1.0)]
    assert rough == sorted(rough, reverse=True) and torch.equal(augment.blur(x, 0.0), x)
    spot = F.pad(torch.ones(1, 3, 1, 1), [16] * 4)
    line = augment.blur(spot, 1.0)[0, 0, 16]
    assert (line[16] / line[20]).item() == pytest.approx(2 ** (4**2 / (33 / 2)), rel=1e-4)


def test_convnext_is_torchvisions():
    with torch.device("meta"):
        network = ConvNeXt()
    assert sum(p.numel() for p in network.parameters()) == 50_223_688
    keys = network.state_dict()
    assert keys["features.5.26.block.5.weight"].shape == (384, 1536) and len(keys) == 344
    assert keys["features.1.0.layer_scale"].shape == (96, 1, 1) and keys["classifier.2.bias"].shape == (1000,)


def test_patches_are_of_seventy_pixels():
    x = torch.rand(1, 3, 128, 128, requires_grad=True)
    network = PatchGAN(8, 3)
    network.eval()(x)[0, 0, 7, 7].backward()
    assert (x.grad[0].abs().sum(0) > 0).any(0).sum() == 70
    assert isinstance(network.main[-1], nn.Conv2d)
