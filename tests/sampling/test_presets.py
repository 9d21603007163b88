"""Published settings of drawing: they are those of the samplers, and pictures get the bytes of the references."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from avarc_cli.errors import UsageError
from avarc_cli.loading import load_model
from avarc_cli.models.maskgen import latent_sampling as kl
from avarc_cli.models.maskgen import sampling as vq
from avarc_cli.models.maskgit import sampling as maskgit
from avarc_cli.models.maskgit.bert import Bert
from avarc_cli.models.maskgit.config import MaskGITBertConfig
from avarc_cli.models.maskgit.likelihood import MaskGITBertLikelihood
from avarc_cli.models.randar import sampling as randar
from avarc_cli.models.rar import sampling as rar
from avarc_cli.models.rar.config import RARConfig
from avarc_cli.models.rar.likelihood import RARLikelihood
from avarc_cli.models.rar.network import RAR
from avarc_cli.sampling import Sampling, sample
from avarc_cli.sampling.presets import find, published
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


def tiny(name):
    """A small network with the width, or the number of tokens, of this published one: its schedule depends on it."""
    few = {"heads": 4, "hidden": 8, "num_classes": 2, "vocab_size": 4}
    with torch.device("meta"):
        if name == "rar-xl":
            return RARLikelihood(RAR(RARConfig(depth=1, width=1280, side=2, **few)))
        return MaskGITBertLikelihood(Bert(MaskGITBertConfig(depth=1, width=8, num_tokens=64, **few)))


@pytest.mark.parametrize("name", ["rar-xl", "maskgit-b64"])
def test_a_preset_is_refused_where_the_network_draws_by_another_schedule(name):
    model = replace(load_model("digits-titok"), name="mine", family=published()[name].family, likelihood=tiny(name))
    Sampling.with_preset(published()[name]).check(model)
    others = [preset for preset in published().values() if preset.family == model.family and preset.model != name]
    assert others
    for preset in others:
        with pytest.raises(UsageError, match=f"the preset of {preset.model} is not for mine") as refused:
            Sampling.with_preset(preset).check(model)
        assert " published, " in refused.value.why


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
    preset = replace(published()["var-d16"], rounding="half-up", side=8)
    drawn = sample(load_model("digits"), ["3"], 1, Sampling.with_preset(preset))
    assert drawn.pictures.shape == (1, 1, 8, 8, 3)
    assert find("paper", "llamagen-l-384").side == 256 and find("paper", "var-d16").side is None
