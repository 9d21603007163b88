"""The Python API: its documentation runs, and options that torch keeps per process do not leak out of a classifier."""

import re
from pathlib import Path

import pytest
import torch

import avarc_cli
from avarc_cli import Options, load_classifier, open_cache, open_images, tune
from avarc_cli.results import scorer
from avarc_cli.zoo.local_files import ASSETS

PAGE = Path(__file__).parent.parent / "docs" / "python-api.md"
IMAGE = sorted((ASSETS / "digits" / "test" / "7").iterdir())[0]


def test_every_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("avarc_cli.incremental.examples.MIN_EXAMPLES", 16)
    names = {}
    for block in blocks:  # on half of the images
        exec(compile(block.replace("per_class=4", "per_class=2"), str(PAGE), "exec"), names)
    shown = capsys.readouterr().out
    assert names["prediction"].name == "7" and "20 []" in shown and "not classes of" in shown
    assert (tmp_path / "run" / "predictions.jsonl").exists() and (tmp_path / "plan.json").exists()


def test_the_page_documents_every_public_name():
    page = PAGE.read_text()
    assert not [name for name in avarc_cli.__all__ if name != "__version__" and f"`{name}" not in page]


def test_tuning_ignores_the_classifiers_own_plan_and_score_and_writes_only_where_it_is_asked_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = open_images([ASSETS / "digits" / "test"]).select(None, per_class=2, limit=None)
    plain = load_classifier("digits", Options(classes="1,7"))
    other = load_classifier("digits", Options(classes="1,7", plan="2:2,5:1", score="pmi"))
    cache = open_cache(plain.encode(images, "tokens.h5").path)
    before = sorted(tmp_path.rglob("*"))
    plans = [tune(classifier, cache, agreement=0.8, hold_out=4) for classifier in (plain, other)]
    assert plans[0] == plans[1] and plans[0].held_out["images"] == 4
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def settings(monkeypatch):
    """(enabled, warn_only) of torch's deterministic algorithms at every call of the scoring engine."""
    seen = []
    score_group = scorer.score_group

    def recorded(*args):
        seen.append(determinism())
        return score_group(*args)

    monkeypatch.setattr(scorer, "score_group", recorded)
    yield seen
    torch.use_deterministic_algorithms(False)


def determinism():
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize("outside", [(False, False), (True, False), (True, True)])
def test_classifiers_score_with_their_own_determinism_and_restore_the_callers(settings, outside):
    torch.use_deterministic_algorithms(outside[0], warn_only=outside[1])
    deterministic, other = (load_classifier("digits", Options(deterministic=d)) for d in (True, False))
    assert determinism() == outside
    for classifier in (deterministic, other, deterministic):
        assert classifier.classify(IMAGE).name == "7"
        assert determinism() == outside
    assert [enabled for enabled, _ in settings] == [True, False, True]
    assert settings[0] == (True, False), "operations without a deterministic version raise, they do not warn"


def test_an_exception_while_scoring_restores_the_callers_determinism(monkeypatch):
    def fail(*args):
        assert determinism() == (True, False)
        raise ZeroDivisionError

    monkeypatch.setattr(scorer, "score_group", fail)
    classifier = load_classifier("digits", Options(deterministic=True))
    with pytest.raises(ZeroDivisionError):
        classifier.classify(IMAGE)
    assert determinism() == (False, False)
