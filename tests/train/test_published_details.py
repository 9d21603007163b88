"""What published trainings do besides their numbers: crops, discriminators' schedules, beginnings, what decays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from avarc_cli import families
from avarc_cli.data.datasets import open_images
from avarc_cli.layers.loss_weights import VQGAN
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.weight_decay import decays_unless_named
from avarc_cli.tokenizers.titok.loss import SecondStageLoss
from avarc_cli.train.images import Augment, TrainingImages
from avarc_cli.train.published_loss import Terms, _rate
from avarc_cli.train.recipe import Recipe

SHAPE = {"vocab_size": 64, "z_channels": 16, "ch": 32, "ch_mult": (1, 2), "patch_nums": (1, 2, 4), "blocks": 1}


@pytest.fixture
def wide(tmp_path):
    """Two images of 80 x 16 pixels whose red is the column, and whose green is the row."""
    for name in "ab":
        pixels = np.zeros((16, 80, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = 3 * np.arange(80), 15 * np.arange(16)[:, None]
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return open_images([tmp_path])


def test_crops_come_from_the_whole_image_by_seed_and_place_alone(wide):
    whole = TrainingImages(wide, 16, Augment(mode="whole", short_side=(1, 1)), seed=3)
    steps = [whole.batch(step, Rows.whole(4))[0] for step in range(10)]
    first = torch.stack(steps)[:, :, 0, 0, 0].flatten() * 127.5 + 127.5  # red of the first column
    assert first.min() < 3 * 16 and first.max() > 3 * 48, "the middle square begins at column 32"
    again = TrainingImages(wide, 16, Augment(mode="whole", short_side=(1, 1)), seed=3)
    parts = torch.cat([again.batch(7, rows)[0] for rows in Rows.whole(4).split(3)])
    assert torch.equal(parts, steps[7])
    other = TrainingImages(wide, 16, Augment(mode="whole", short_side=(1, 1)), seed=4)
    assert not torch.equal(other.batch(7, Rows.whole(4))[0], steps[7])


def test_the_shorter_side_has_a_random_length(wide):
    images = TrainingImages(wide, 8, Augment(mode="whole", short_side=(1, 2)), seed=0)
    x = torch.cat([images.batch(step, Rows.whole(4))[0] for step in range(20)])
    heights = ((x[:, 1, -1, 0] - x[:, 1, 0, 0]) * 127.5 / 15).round()  # rows of the file that the crop spans
    assert heights.min() <= 8 and heights.max() >= 13


def test_a_discriminator_of_titok_warms_up_when_it_begins():
    recipe = Recipe(steps=100, batch_size=1, lr=1.0, schedule="cosine", warmup=0.1, first=0, final=0.1)
    rate = _rate(SecondStageLoss.published.adversary, recipe, 20)
    assert [rate(20), rate(25), rate(30)] == pytest.approx([0, 0.5, 1])
    assert rate(99) == pytest.approx(0.1, abs=1e-3) and rate(65) == pytest.approx(0.55)
    assert [_rate(VQGAN.adversary, recipe, 20)(step) for step in (5, 50)] == [recipe.rate(5), recipe.rate(50)]


def test_options_change_the_published_discriminator():
    terms = Terms(adversarial=True, discriminator_lr=2.0, discriminator_betas=(0.5, 0.9), discriminator_start=0.5)
    adversary = terms.changed(VQGAN).adversary
    assert (adversary.lr, adversary.betas, adversary.start) == (2.0, (0.5, 0.9), 0.5)
    assert (adversary.weight, adversary.weight_decay) == (VQGAN.adversary.weight, VQGAN.adversary.weight_decay)
    recipe = Recipe(steps=100, batch_size=1, lr=1.0)
    assert _rate(adversary, recipe, 50)(60) == pytest.approx(2 * recipe.rate(60))


def test_a_vqvae_begins_as_in_its_authors_trainer():
    torch.manual_seed(0)
    network = families.TOKENIZERS.get("vqvae").new(image_size=8, **SHAPE, initialization="published")
    conv = network.encoder.mid.block_1.conv1.weight  # 64 to 64 channels, 3 x 3
    assert conv.std().item() == pytest.approx(0.5 * (2 / (9 * 128)) ** 0.5, rel=0.02)
    bound = 16**-0.5 / 36
    assert network.quantize.embedding.weight.abs().max() <= bound < 1.1 * network.quantize.embedding.weight.max()


@pytest.mark.parametrize(
    ("family", "decayed", "not_decayed"),
    [
        ("vqvae", ["encoder.conv_in.weight"], ["encoder.conv_in.bias", "quantize.embedding.weight"]),
        ("titok", ["encoder.transformer.0.mlp.c_fc.weight"], ["latent_tokens", "encoder.patch_embed.weight"]),
        ("tatitok", ["decoder.ffn.0.weight"], ["decoder.mask_token", "quantize.embedding.weight"]),
        ("llamagen-vq", ["quantize.embedding.weight"], ["encoder.norm_out.weight"]),
    ],
)
def test_weight_decay_spares_what_the_published_code_spares(family, decayed, not_decayed):
    words = families.TOKENIZERS.get(family).undecayed
    weight, vector = torch.zeros(2, 2), torch.zeros(2)

    def decays(name):
        return decays_unless_named(name, vector if name.endswith(("bias", "norm_out.weight")) else weight, words)

    assert all(map(decays, decayed)) and not any(map(decays, not_decayed))
