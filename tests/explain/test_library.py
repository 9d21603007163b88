"""explain_images, write_report and export_cache as a library calls them."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from avarc_cli import load_classifier
from avarc_cli.data.datasets import open_images
from avarc_cli.errors import UsageError
from avarc_cli.explain import ExplainOptions, Weighting, explain_images, write_report
from avarc_cli.export_cache import export_cache
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.run import classify
from avarc_cli.tokens import read

DIGITS = Path("avarc_cli/assets/digits/test")


class Bars:
    """Records what a progress bar would show."""

    def __init__(self):
        self.bars = []

    @contextmanager
    def __call__(self, description, total):
        bar = Bar(description, total)
        self.bars.append(bar)
        yield bar


class Bar:
    def __init__(self, description, total):
        self.description, self.total, self.done = description, total, 0

    def update(self, done, total=None, note=""):
        self.done = done


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("digits")


@pytest.fixture(scope="module")
def images(request):
    return open_images([request.config.rootpath / DIGITS]).select(None, 1, None)


@pytest.fixture(scope="module")
def cache(classifier, images, tmp_path_factory):
    return read(classifier.encode(images, tmp_path_factory.mktemp("cache") / "t.h5").path)


def test_images_and_their_cache_give_the_same_explanations(classifier, images, cache):
    bars = Bars()
    options = ExplainOptions(limit=2)
    by_images = explain_images(classifier, images, options, progress=bars)
    by_cache = explain_images(classifier, cache, options)
    assert [(b.description, b.total, b.done) for b in bars.bars] == [
        ("encoding", 10, 10),
        ("classifying", 10, 10),
        ("explaining", 2, 2),
    ]
    assert by_images.num_images == by_cache.num_images == 10 and not by_images.unreadable
    for a, b in zip(by_images.explanations, by_cache.explanations, strict=True):
        assert (a.path, a.class_ids, a.posterior) == (b.path, b.class_ids, b.posterior)
        np.testing.assert_array_equal(a.log_prob, b.log_prob)
        assert a.panels(Weighting())[-1].map_sum == b.panels(Weighting())[-1].map_sum


def test_rows_keep_their_order_if_asked(classifier, cache):
    result = explain_images(classifier, cache, ExplainOptions(rows="7,2-3", keep_order=True))
    assert [e.row for e in result.explanations] == [7, 2, 3]
    assert [e.path for e in result.explanations] == [cache.paths[row] for row in (7, 2, 3)]


def test_more_images_than_allowed_are_refused_before_they_are_classified(classifier, cache, monkeypatch):
    monkeypatch.setattr(classifier, "run", lambda *a, **k: pytest.fail("classified"))
    with pytest.raises(UsageError, match="10 images"):
        explain_images(classifier, cache, ExplainOptions(max_images=9))


def test_a_report_and_an_export_agree_with_the_run(classifier, cache, tmp_path):
    run = classifier.run(cache, classifier.request(cache.header))
    classify(run, RunFolder(tmp_path / "run"))
    bars = Bars()
    written = write_report(
        tmp_path / "run",
        tmp_path / "page.html",
        load_classifier,
        hardest=2,
        tokens=cache.path,
        progress=bars,
    )
    assert (written.images, written.explained) == (10, 2) and written.page.read_text().count("<article") == 2
    shape = export_cache(classifier, cache, tmp_path / "all.npz", progress=bars)
    assert [b.description for b in bars.bars] == ["explaining", "scoring", "writing"]
    assert shape == np.load(tmp_path / "all.npz")["log_likelihood"].shape == (10, 10)
