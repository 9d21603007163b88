"""The classes closest to new images, found by scoring most classes on few images."""

import numpy as np
import pytest
import torch

from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.incremental import closest
from avarc_cli.incremental.closest import closest_classes
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.scoring.exhaustive import log_likelihoods
from avarc_cli.tokens import encode, read
from avarc_cli.zoo.local_files import ASSETS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_model(ModelSpec("digits", device="cpu"))


@pytest.fixture(scope="module")
def digits_cache(digits, tmp_path_factory):
    tokenizer = digits.tokenizer
    pixels = Preprocess(tokenizer.preprocess, tokenizer.image_size)
    out = tmp_path_factory.mktemp("closest") / "digits.h5"
    return read(encode(open_images([ASSETS / "digits" / "test"]), tokenizer, pixels, out).path)


def test_the_closest_digits_are_those_of_exhaustive_scoring(digits, digits_cache, monkeypatch):
    """The classes without the digit itself, so that the closest one is another digit."""
    monkeypatch.setattr(closest, "LEAST", 6)  # of nine classes
    for digit in (1, 4, 7):
        rows = np.flatnonzero(digits_cache.labels == digit)[:32]
        tokens = torch.from_numpy(digits_cache.tokens(rows)[:, 0])
        others = [c for c in range(10) if c != digit]
        means = log_likelihoods(digits.likelihood, tokens, others, device=CPU).mean(0)
        assert closest_classes(digits.likelihood, tokens, others, 1, device=CPU) == [others[means.argmax()]]


class Table:
    """Scores in place of a model: class k is 3 k nats behind the first, plus noise of each image."""

    def __init__(self, classes, images):
        rng = np.random.default_rng(0)
        self.scores = -3.0 * np.arange(classes) + rng.normal(0, 20, (images, classes))
        self.pairs = 0

    def __call__(self, model, tokens_NL, class_ids_K, *, device, progress):
        self.pairs += len(tokens_NL) * len(class_ids_K)
        for row in range(len(tokens_NL)):
            progress(row + 1, len(tokens_NL))
        return self.scores[tokens_NL[:, 0].numpy()][:, class_ids_K]


@pytest.mark.parametrize(("count", "images", "pairs"), [(1, 40, 5012), (20, 40, 5012), (70, 40, 5180), (1, 5, 2750)])
def test_a_thousand_classes_take_a_sixth_of_the_pairs(monkeypatch, count, images, pairs):
    table, reported = Table(1000, images), []
    monkeypatch.setattr(closest, "log_likelihoods", table)
    found = closest_classes(
        None,
        torch.arange(images)[:, None],
        range(1000),
        count,
        device=CPU,
        progress=lambda done, total=None, note="": reported.append((done, total)),
    )
    means = table.scores[:32].mean(0)
    assert found == np.argsort(-means)[:count].tolist() or images < 32
    assert len(found) == count and table.pairs == pairs
    assert reported == sorted(reported) and reported[-1] == (pairs, pairs)


def test_there_may_be_fewer_classes_than_asked_for(monkeypatch):
    monkeypatch.setattr(closest, "log_likelihoods", Table(5, 3))
    assert sorted(closest_classes(None, torch.arange(3)[:, None], [4, 2, 0], 20, device=CPU)) == [0, 2, 4]
