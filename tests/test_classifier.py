"""The Python API: load_classifier with the included model, and the files that the package ships."""

import numpy as np
import pytest

from avarc_cli import Options, load_classifier
from avarc_cli.errors import UnreadableImage, UsageError
from avarc_cli.results import tuned
from avarc_cli.zoo.local_files import ASSETS

TEST_IMAGES = ASSETS / "digits" / "test"


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("digits")


def test_three_lines_of_python_classify_an_image(classifier):
    image = sorted((TEST_IMAGES / "7").iterdir())[0]
    prediction = classifier.classify(str(image))
    assert prediction.name == "7" and prediction.probability > 0.5
    names, probabilities = zip(*prediction.top(10), strict=True)
    assert sorted(names) == list("0123456789") and sum(probabilities) == pytest.approx(1)
    assert list(probabilities) == sorted(probabilities, reverse=True)


def test_several_images_come_back_in_order(classifier):
    images = [sorted((TEST_IMAGES / digit).iterdir())[1] for digit in "90"]
    assert [p.name for p in classifier.classify_all(images)] == ["9", "0"]


def test_classes_can_be_ids_priors_logarithms_and_a_plan_what_tune_returned(classifier):
    plan = tuned.find("auto", classifier.model)
    assert load_classifier("digits", Options(plan=plan)).tuned == plan
    log_prior = np.log([0.25, 0.75])
    made = load_classifier("digits", Options(classes=[7, 3], priors=log_prior))
    assert made.candidates.tolist() == [3, 7] and np.array_equal(made.log_prior, log_prior)
    for options, message in [
        (Options(classes=[3, 12]), "no class 12"),
        (Options(classes=[]), "is empty"),
        (Options(classes=[1], priors=log_prior), "2 priors"),
        (Options(plan=plan, classes=[1, 2]), "does not hold here"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_classifier("digits", options)


def test_what_cannot_be_read_is_an_avarc_error(classifier, tmp_path):
    (tmp_path / "x.png").write_text("no image")
    good = sorted((TEST_IMAGES / "7").iterdir())[0]
    with pytest.raises(UnreadableImage, match=r"x\.png"):
        classifier.classify(tmp_path / "x.png")
    with pytest.raises(UnreadableImage, match=r"x\.png"):
        classifier.classify_all([good, tmp_path / "x.png"])
    with pytest.raises(UsageError, match="does not exist"):
        classifier.classify(tmp_path / "nowhere.png")


def test_the_assets_are_360_images_and_small_weights():
    images = list(TEST_IMAGES.rglob("*.png"))
    assert len(images) == 360 and {p.parent.name for p in images} == set("0123456789")
    weights = sum(p.stat().st_size for p in (ASSETS / "digits").glob("*.safetensors"))
    assert weights <= 12e6
