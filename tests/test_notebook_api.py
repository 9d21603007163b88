"""What a classifier does with images in a program, and how its results look in a notebook, a table and a file."""

import base64
import io
import itertools
import json
import os
import shutil
import sys

import numpy as np
import pandas
import pytest
from PIL import Image

from avarc_cli import Options, Sampling, load_classifier, open_cache, open_images
from avarc_cli.errors import UnreadableImage, UsageError
from avarc_cli.explain import Weighting
from avarc_cli.results.tuned import find
from avarc_cli.zoo.local_files import ASSETS

FOLDER = ASSETS / "digits" / "test"
FILES = [sorted((FOLDER / digit).iterdir())[0] for digit in "7302"]


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("digits")


@pytest.fixture(scope="module")
def by_file(classifier):
    return classifier.classify_all(FILES)


# Images in every form


def test_images_in_memory_are_scored_as_their_files_are(classifier, by_file):
    pictures = [Image.open(path) for path in FILES]
    arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    for images in (pictures, arrays, iter(pictures), tuple(map(str, FILES)), open_images(FILES)):
        found = classifier.classify(images)
        assert [each.ranking for each in found] == [each.ranking for each in by_file]
    one = classifier.classify(arrays[0])
    assert one.name == "7" and one.path == "image 0"


def test_predictions_of_an_endless_iterator_come_as_soon_as_a_batch_is_scored(classifier, monkeypatch):
    monkeypatch.setattr("avarc_cli.classifier.default_batch_size", lambda side: 2)
    pictures = (Image.open(FILES[number % 4]) for number in itertools.count())
    predictions = list(itertools.islice(classifier.classify_each(pictures), 5))
    assert [each.name for each in predictions] == list("73027")
    assert [each.path for each in predictions] == [f"image {n}" for n in range(5)]


def test_a_folder_is_several_images(classifier, tmp_path):
    for path in FILES[:2]:
        shutil.copy(path, tmp_path)
    assert sorted(each.name for each in classifier.classify_all(tmp_path)) == ["3", "7"]
    with pytest.raises(UsageError, match=r"2 images(.|\n)*classify_all"):
        classifier.classify(tmp_path)
    with pytest.raises(UsageError, match="one image is needed"):
        classifier.explain(FILES)
    assert classifier.classify([]) == []


def test_an_unreadable_image_in_memory_is_named(classifier):
    with pytest.raises(UnreadableImage, match="image 1"):
        classifier.classify([FILES[0], Image.new("RGB", (100_000, 2000))])


# Results


def test_a_prediction_says_how_the_plan_came_to_it():
    staged = load_classifier("digits", Options(plan="3:3,5:1")).classify(FILES[0])
    first, last = staged.stages
    assert len(first.ranking) == 10 and len(first.kept) == 3 and len(last.ranking) == 3
    assert [name for name, _ in first.ranking[:3]] == list(first.kept) and staged.name == "7"
    assert first.tokens == 1 + 4 + 9 and last.tokens == 103
    assert staged.tokens_scored == 10 * 14 + 3 * (103 - 14)
    assert dict(staged.stages[-1].ranking)["7"] == pytest.approx(staged.ranking[0][2])


def test_results_become_json_tables_and_html(classifier, by_file):
    prediction = by_file[0]
    values = json.loads(json.dumps(prediction.to_dict()))
    assert values["name"] == values["id"] == "7" and len(values["ranking"]) == 10
    assert values["stages"][0]["kept"] == ["7"] and values["tokens_scored"] == 1030
    assert json.loads(json.dumps(by_file.to_dict()))[1]["name"] == "3"
    table = prediction.to_pandas()
    assert list(table.columns) == ["id", "name", "probability", "score"] and len(table) == 10
    assert table.probability.sum() == pytest.approx(1) and table.name.iloc[0] == "7"
    table = by_file.to_pandas()
    assert list(table.name) == list("7302") and list(table.tokens_scored) == [1030] * 4
    assert "<table" in prediction._repr_html_() and by_file._repr_html_().count("<tr>") == 5


def test_a_run_becomes_json_and_the_table_that_it_writes(classifier, tmp_path):
    for class_name, file in zip(("7", "unheard of"), FILES, strict=False):  # the second has no label
        (tmp_path / "set" / class_name).mkdir(parents=True)
        shutil.copy(file, tmp_path / "set" / class_name)
    images = open_images([tmp_path / "set"])
    cache = open_cache(classifier.encode(images, tmp_path / "tokens.h5").path)
    run, in_memory = classifier.classify_cache(cache, tmp_path / "run"), classifier.classify_cache(cache)
    values = json.loads(json.dumps(run.to_dict()))
    assert values["complete"] and values["metrics"] == run.metrics
    assert str(tmp_path / "run" / "predictions.csv") in values["files"] and all(map(os.path.isfile, values["files"]))
    assert in_memory.to_dict()["files"] == []
    table = run.to_pandas()
    written = pandas.read_csv(tmp_path / "run" / "predictions.csv", dtype=table.dtypes.to_dict())
    pandas.testing.assert_frame_equal(table.convert_dtypes(), written.convert_dtypes())
    assert table.correct.iloc[0] and table.correct.isna().iloc[1] and table.label.iloc[0] == 7
    pandas.testing.assert_frame_equal(table, in_memory.to_pandas())


def test_names_are_escaped_in_a_notebook(classifier, tmp_path):
    odd = tmp_path / "<b>.png"
    shutil.copy(FILES[0], odd)
    shown = classifier.classify_all([odd, FILES[1]])._repr_html_()
    assert "&lt;b&gt;" in shown and "<b>" not in shown


def test_without_pandas_the_message_says_how_to_get_it(classifier, by_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for make in (by_file.to_pandas, by_file[0].to_pandas, classifier.sample("3").to_pandas):
        with pytest.raises(UsageError, match=r"pip install 'avarc\[notebook\]'"):
            make()


def test_log_likelihoods_are_of_all_classes_whatever_the_plan_and_the_priors(classifier, by_file):
    other = load_classifier("digits", Options(plan="3:3,5:1", score="pmi", priors=np.log(np.arange(1, 11) / 55)))
    found, same = classifier.log_likelihood(FILES), other.log_likelihood(iter(FILES))
    assert found.values.shape == (4, 10) and np.array_equal(found.values, same.values)
    for row, prediction in zip(found.values, by_file, strict=True):
        assert {n: s for n, _, s in prediction.ranking} == pytest.approx(dict(zip(found.names, row, strict=True)))
    assert found.to_dict()[0]["log_likelihood"]["7"] == found.values[0, 7]
    table = found.to_pandas()
    assert table.shape == (4, 10) and table["7"].iloc[0] == found.values[0, 7]
    assert "7 -" in found._repr_html_()
    assert load_classifier("digits", Options(classes="3,7")).log_likelihood(FILES[0]).ids == ("3", "7")


# Explanations and samples


def test_an_explanation_adds_up_to_the_difference_of_the_likelihoods(classifier, tmp_path):
    with Image.open(FILES[0]) as picture:
        explained = classifier.explain(picture, 7, "3")
    [row] = classifier.log_likelihood(FILES[0]).values
    assert (explained.name, explained.contrast) == ("7", "3")
    assert explained.log_likelihood_ratio == pytest.approx(row[7] - row[3], abs=1e-3)
    assert explained.map.shape == (8, 8) and explained.map.sum() == pytest.approx(explained.log_likelihood_ratio)
    assert json.loads(json.dumps(explained.to_dict()))["contrast"] == "3"
    table = explained.to_pandas()
    assert len(table) == 103 and list(table.columns) == ["scale", "row", "column", "evidence"]
    assert table.evidence.sum() == pytest.approx(explained.log_likelihood_ratio)
    finest = table[table.scale == table.scale.max()].pivot(index="row", columns="column", values="evidence")
    assert np.allclose(finest, explained.explanation.panels(Weighting())[-1].grids[-1])
    assert explained._repr_png_().startswith(b"\x89PNG")
    coarse = explained.scales(1, 3)
    assert coarse.weighting == Weighting(scales=(1, 3)) and abs(coarse.map - explained.map).max() > 0.1
    assert explained.overlay(0.5, side=64).size == (64, 64)
    assert explained.overlay(0).tobytes() != explained.overlay(1).tobytes()
    for name in ("why.png", "why.html"):
        explained.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(UsageError, match="exists"):
        explained.save(tmp_path / "why.png")
    with pytest.raises(UsageError, match=r"\.pdf"):
        explained.save(tmp_path / "why.pdf")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda c: c.explain(FILES[0], "eleven"), "not classes of"),
        (lambda c: c.explain(FILES[0], 11), "no class 11"),
        (lambda c: c.explain(FILES[0], -1), "no class -1"),
        (lambda c: c.explain(FILES[0], "7").scales(3, 9), "no scales 3-9"),
        (lambda c: c.explain(FILES[0], "7").overlay(2), "opacity"),
        (lambda c: c.sample("3,7"), "several classes"),
        (lambda c: c.sample("3", 0), "at least 1"),
        (lambda c: c.add_class("x", FILES), "which bank"),
        (lambda c: c.add_class("x", [], bank="bank"), "no images"),
        (lambda c: c.add_class("3", FILES, bank="bank"), "exists already"),
    ],
)
def test_wrong_requests_end_with_advice(classifier, ask, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        ask(classifier)
    assert not list(tmp_path.iterdir())


def test_samples_are_images_of_pillow_and_depend_on_the_seed_alone(classifier):
    drawn = classifier.sample("3", 3, Sampling(seed=1, guidance=1.5))
    assert [each.size for each in drawn] == [(16, 16)] * 3 and drawn._repr_html_().count("<img") == 3
    assert drawn.to_pandas().to_dict("list") == {
        "id": ["3"] * 3,
        "name": ["3"] * 3,
        "seed": [1] * 3,
        "number": [0, 1, 2],
    }
    values = json.loads(json.dumps(drawn.to_dict()))
    kind, data = values[2]["picture"].split(",")
    assert kind == "data:image/png;base64" and values[2]["number"] == 2
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == drawn[2].tobytes()
    again = classifier.sample(3, 1, Sampling(seed=1, guidance=1.5))
    assert again[0].tobytes() == drawn[0].tobytes()


# Adding classes


@pytest.fixture(scope="module")
def fives():
    return [Image.open(path) for path in sorted((FOLDER / "5").iterdir())[:6]]


@pytest.fixture(autouse=True)
def few_variants(monkeypatch):
    """Of training images: encoding as many as usual takes longer than all that is tested."""
    monkeypatch.setattr("avarc_cli.incremental.examples.MIN_EXAMPLES", 16)


def test_a_class_is_added_from_pictures_and_used_at_once(fives, tmp_path):
    bank, said = tmp_path / "bank", []
    base = load_classifier("digits-0-4")
    before = base.log_likelihood(fives[:2]).values
    extended = base.add_class("five", iter(fives[:4]), bank=bank, steps=20, offset=False, say=said.append)
    assert len(said) == 1 and "only 4 images" in said[0]
    assert len(base.candidates) == 5 and list(extended.model.classes.ids) == ["0", "1", "2", "3", "4", "five"]
    assert np.array_equal(extended.log_likelihood(fives[:2]).values[:, :5], before)
    assert [each.name for each in extended.classify(fives[4:])] == ["five", "five"]
    with pytest.raises(UsageError, match="exists already"):
        extended.add_class("five", fives)
    with pytest.raises(UsageError, match="has the bank"):
        extended.add_class("six", fives, bank=tmp_path / "other")
    both = extended.add_class("5b", fives[:1], method="embedding", steps=2, offset=False)
    assert both.model.classes.ids[-2:] == ("five", "5b")
    assert np.array_equal(both.log_likelihood(fives[:2]).values[:, :5], before)


def test_named_candidates_get_one_more_and_what_holds_for_them_only_is_refused(fives, tmp_path):
    few = load_classifier("digits-0-4", Options(classes="1,3"))
    more = few.add_class("five", fives[:1], bank=tmp_path / "bank", method="embedding", steps=2, offset=False)
    assert more.candidates.tolist() == [1, 3, 5]
    digits = load_classifier("digits")
    for options, message in [
        (Options(plan=find("auto", digits.model)), "tuned plan"),
        (Options(priors=np.log(np.full(10, 0.1))), "priors"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_classifier("digits", options).add_class("x", fives, bank=tmp_path / "other")
