"""Published settings of drawing: they are those of the samplers, and pictures get the bytes of the references."""

import re

import numpy as np
import pytest
import torch

from avarc_cli.loading import load_model
from avarc_cli.models.maskgen import latent_sampling as kl
from avarc_cli.models.maskgen import sampling as vq
from avarc_cli.models.maskgit import sampling as maskgit
from avarc_cli.models.randar import sampling as randar
from avarc_cli.models.rar import sampling as rar
from avarc_cli.sampling import Sampling, sample
from avarc_cli.sampling.presets import Preset, find, published
from avarc_cli.tokens.reconstruct import to_pixels
from avarc_cli.zoo.cards import model_card


def test_every_preset_is_of_a_published_model_and_has_a_source():
    for name, preset in published().items():
        assert model_card(name).name == name and preset.source.startswith("https://")
        assert preset.rounding in ("truncate", "half-up") and 0 < preset.guidance < 20


def test_temperature_steps_and_schedule_are_the_samplers():
    for name, width in {"rar-b": 768, "rar-l": 1024, "rar-xl": 1280, "rar-xxl": 1408}.items():
        preset, schedule = published()[name], rar.Schedule.of_width(width)
        assert (preset.guidance, preset.temperature) == (schedule.guidance, schedule.temperature)
        assert preset.schedule == f"power-cosine, {schedule.power}"
    for name, tokens in {"maskgit-l32": 32, "maskgit-b64": 64, "maskgit-s128": 128}.items():
        preset, of_tokens = published()[name], maskgit.Schedule.of_length(tokens)
        assert (preset.guidance, preset.temperature) == (of_tokens.guidance, of_tokens.temperature)
        assert (preset.steps, preset.schedule) == (of_tokens.steps, of_tokens.growth)
    codes, latents = published()["maskgen-vq-xl"], published()["maskgen-kl-l"]
    assert (codes.guidance, codes.temperature, codes.steps) == (
        vq.SCHEDULE.guidance,
        vq.SCHEDULE.temperature,
        vq.SCHEDULE.steps,
    )
    assert (latents.guidance, latents.steps) == (kl.SCHEDULE.guidance, kl.SCHEDULE.steps)
    assert published()["randar-l-256"].steps == randar.STEPS


def test_guidance_is_the_stated_scale_as_avarc_counts_it():
    """Where a reference's scale 1 means no guidance, ours is one less."""
    for name, preset in published().items():
        stated = float(re.findall(r"\d+\.\d+|\d+", preset.stated)[0])
        from_zero = preset.family == "var" or name in ("maskgit-l32", "maskgit-b64") or name.startswith("maskgen-vq")
        assert preset.guidance == pytest.approx(stated if from_zero else stated - 1), name


@pytest.mark.parametrize(
    ("rounding", "reference"),
    [
        ("nearest", lambda x: np.rint((x + 1) * 127.5)),
        ("truncate", lambda x: np.floor((x + 1) / 2 * 255)),  # VAR, 1d-tokenizer
        ("half-up", lambda x: np.floor(np.clip(127.5 * x + 128, 0, 255))),  # LlamaGen
    ],
)
def test_pixels_are_rounded_as_the_reference_does(rounding, reference):
    values = torch.linspace(-1, 1, 4999).view(1, 1, -1).repeat(3, 1, 1)
    ours = to_pixels(values, rounding)[0, :, 0]
    assert np.array_equal(ours, reference(values[0, 0].numpy()).astype(np.uint8))


def test_pictures_are_reduced_where_the_publication_did():
    preset = Preset(
        model="var-d16",
        source="a test",
        stated="1.5",
        guidance=1.5,
        top_k=0,
        top_p=0.0,
        temperature=1.0,
        schedule="linear",
        rounding="half-up",
        side=8,
    )
    drawn = sample(load_model("digits"), ["3"], 1, Sampling.with_preset(preset))
    assert drawn.pictures.shape == (1, 1, 8, 8, 3)
    assert find("paper", "llamagen-l-384").side == 256 and find("paper", "var-d16").side is None
