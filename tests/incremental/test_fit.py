"""Fitting: what is trained, when it stops, and what few images mean."""

import math

import numpy as np
import pytest
import torch

from avarc_cli.added_classes import METHODS, AddedClassesModel
from avarc_cli.errors import UsageError
from avarc_cli.incremental.examples import Examples, TokenPool, Variation, concatenate, load
from avarc_cli.incremental.fit import FitOptions, fit_class, validation_split
from avarc_cli.layers.rows import Rows
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.scoring.exhaustive import log_likelihoods

CPU = torch.device("cpu")
CLOSEST = 3  # the class that training starts from


@pytest.fixture(scope="module")
def base(tiny):
    return VARLikelihood(tiny.var().requires_grad_(False), tiny.vqvae().quantize)


@pytest.fixture(scope="module")
def examples():
    """Ten images that are one image with a few tokens changed."""
    rng = np.random.default_rng(0)
    tokens = np.tile(rng.integers(64, size=30), (10, 1))
    tokens[:, rng.integers(30, size=4)] = rng.integers(64, size=(10, 4))
    return Examples(torch.from_numpy(tokens)[:, None], np.zeros(10, dtype=np.int64), ("new",))


def fit(base, examples, **options):
    return fit_class(base, examples, CLOSEST, FitOptions(batch_size=4, **options), lambda step, values: None)


@pytest.mark.parametrize("method", METHODS)
def test_fitting_changes_no_bit_of_the_base_and_makes_its_images_likelier(base, examples, method):
    before = {key: tensor.clone() for key, tensor in base.var.state_dict().items()}
    fitted = fit(base, examples, method=method, steps=12)
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.var.state_dict().items())
    assert all(parameter.grad is None for parameter in base.var.parameters())
    assert fitted.bits_after < fitted.bits_before and 0 < fitted.steps <= 12
    held_out = examples.tokens[torch.from_numpy(fitted.validation), 0]
    scores = log_likelihoods(AddedClassesModel(base, [fitted.added]), held_out, [fitted.closest, 10], device=CPU)
    bits = -scores.mean(0) / 30 / math.log(2)
    assert bits == pytest.approx([fitted.bits_before, fitted.bits_after], abs=1e-3)


def test_early_stopping_restores_the_best_weights(base, examples):
    """The held-out images have nothing in common with the others: learning those soon harms these."""
    tokens = examples.tokens.clone()
    tokens[validation_split(10, 0)] = (tokens[validation_split(10, 0)] + 31) % 64
    seen = []
    options = FitOptions(method="lora", steps=120, lr=3e-2, batch_size=2)
    strangers = Examples(tokens, examples.labels, examples.class_names)
    fitted = fit_class(base, strangers, CLOSEST, options, lambda step, values: seen.append(step))
    assert fitted.steps <= 20 and seen[-1] == fitted.steps + 40 < 120, "four looks at every tenth step without gain"
    held_out = tokens[validation_split(10, 0), 0]
    found = log_likelihoods(AddedClassesModel(base, [fitted.added]), held_out, [10], device=CPU)
    assert -found.mean() / 30 / math.log(2) == pytest.approx(fitted.bits_after, abs=1e-3), "the best weights are kept"


def test_a_fifth_is_held_out_but_nothing_of_few_images():
    assert len(validation_split(100, 0)) == 20 and len(validation_split(5, 0)) == 1
    assert validation_split(4, 0).tolist() == [0, 1, 2, 3] and validation_split(1, 0).tolist() == [0]
    assert not np.array_equal(validation_split(100, 0), validation_split(100, 1))


def test_one_image_is_enough(base, examples):
    fitted = fit(base, examples.take([0]), method="embedding", steps=6)
    assert fitted.bits_after < fitted.bits_before and fitted.validation.tolist() == [0]


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"steps": 0}, {"lr": -1.0}, {"batch_size": 0}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        FitOptions(**wrong)


def test_batches_follow_from_seed_and_step_alone(examples):
    pool = TokenPool(examples, 3)
    first, again, other = (p.batch(5, Rows.whole(8)) for p in (pool, TokenPool(examples, 3), TokenPool(examples, 4)))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert first[0].shape == (8, 30) and first[1].tolist() == [0] * 8


def test_examples_are_saved_and_loaded_whole(examples, tmp_path):
    part = Examples(examples.tokens, examples.labels, ("a", "b"), (("x.png", "cut"),))
    part.save(tmp_path / "e.npz")
    again = load(tmp_path / "e.npz")
    assert torch.equal(again.tokens, part.tokens) and again.class_names == ("a", "b")
    assert again.unreadable == part.unreadable and np.array_equal(again.labels, part.labels)


def test_labels_follow_their_names(examples):
    ab = Examples(examples.tokens[:4], np.array([0, 1, 1, 2]), ("a", "b", "c"))
    turned = ab.relabel(["C", "b"])
    assert turned.labels.tolist() == [1, 1, 0] and turned.class_names == ("C", "b")
    both = concatenate([ab, Examples(examples.tokens[:2].expand(2, 3, 30), np.array([0, 0]), ("a", "b", "c"))])
    assert both.tokens.shape == (6, 1, 30) and both.labels.tolist() == [0, 1, 1, 2, 0, 0]


class FakeTokenizer:
    image_size = 16

    def __init__(self, preprocess):
        self.preprocess = preprocess


def test_default_augmentations_depend_on_the_preprocessing():
    photos, drawings = FakeTokenizer("resize-crop"), FakeTokenizer("fit")
    for of_photos in (photos, FakeTokenizer("adm")):
        assert (Variation().changes(of_photos).mode, Variation().changes(of_photos).flip) == ("crop", True)
    assert (Variation().changes(drawings).mode, Variation().changes(drawings).flip) == ("affine", False)
    assert (
        Variation(flip=False).changes(photos).flip is False and Variation(augment="none").changes(photos).flip is False
    )
    assert [Variation().count(n) for n in (1, 4, 32, 1000)] == [256, 128, 16, 16]
