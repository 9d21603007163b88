"""What `avarc train classifier` decides from images, machine and time, without training anything."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_datasets import fill

from avarc_cli.data.datasets import open_images
from avarc_cli.errors import UsageError
from avarc_cli.own_model import hold_out
from avarc_cli.own_model.decisions import decide
from avarc_cli.own_model.request import Request
from avarc_cli.own_model.sizes import sizes
from avarc_cli.own_model.speed import Speed
from avarc_cli.own_model.survey import survey
from avarc_cli.zoo.local_files import ASSETS

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import photos

DIGITS = ASSETS / "digits" / "test"


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory):
    """Surveys of six photos of each of four classes, and of the digits."""
    folder = tmp_path_factory.mktemp("photos")
    photos.write_photos(folder, 6, side=72, seed=0)
    return survey(open_images([folder])), survey(open_images([DIGITS]))


def test_photos_and_digits_are_told_apart(surveyed):
    photo, digit = surveyed
    assert (photo.is_gray, photo.is_object, photo.edge, photo.needed) == (False, False, 72, 64)
    assert (digit.is_gray, digit.is_object, digit.edge, digit.needed) == (True, True, 32, 16)
    assert photo.counts == dict.fromkeys(("bricks", "grass", "pebbles", "ripples"), 6)


def test_photos_do_not_depend_on_how_many_are_written(tmp_path):
    one = photos.draw("grass", np.random.default_rng([0, 1, 3]), 72)
    photos.write_photos(tmp_path, 4, side=72, seed=0)
    with Image.open(tmp_path / "grass" / "0003.png") as written:
        assert written.tobytes() == one.tobytes()


def test_images_that_cannot_be_read_or_have_no_class_are_left_out(tmp_path):
    fill(tmp_path, "a/0.png", "a/1.png", "b/0.png", "loose.png")
    (tmp_path / "b" / "1.png").write_bytes(b"no image")
    found = survey(open_images([tmp_path]))
    assert found.counts == {"a": 2, "b": 1} and [name for name, _ in found.unreadable] == ["b/1.png"]
    (tmp_path / "b" / "0.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="no image of b is readable"):
        survey(open_images([tmp_path]))


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(1, 0.9, 0), (2, 0.1, 0), (2, 0.5, 1), (5, 0.1, 1), (3, 0.99, 2)]
)
def test_a_class_keeps_an_image_to_train_on(count, fraction, held):
    labels = np.array([0] * count + [1] * 20)
    kept, others = hold_out.split(labels, fraction, seed=0)
    assert (labels[others] == 0).sum() == held
    assert sorted([*kept.tolist(), *others.tolist()]) == list(range(len(labels))), "each image is on one side"


def test_the_split_is_seeded_and_other_classes_do_not_change_it():
    labels = np.repeat([0, 1, 2], 30)
    _, held = hold_out.split(labels, 0.2, seed=1)
    assert np.bincount(labels[held]).tolist() == [6, 6, 6]
    assert held.tolist() == hold_out.split(labels, 0.2, seed=1)[1].tolist()
    assert held.tolist() != hold_out.split(labels, 0.2, seed=2)[1].tolist()
    fewer = hold_out.split(labels[:60], 0.2, seed=1)[1]
    assert fewer.tolist() == [row for row in held.tolist() if row < 60]


def test_a_plan_is_tuned_for_what_the_images_can_guarantee():
    assert [hold_out.agreement_for(n) for n in (48, 49, 99, 199)] == [None, 0.98, 0.99, 0.995]


@pytest.mark.parametrize(("side", "grid"), [(8, 8), (16, 8), (24, 6), (28, 7), (32, 8), (64, 8), (128, 8), (256, 16)])
def test_grids_are_near_eight(side, grid):
    assert sizes(side, large=False).grid == grid == sizes(side, large=True).grid


@pytest.mark.parametrize("side", [2, 17, 512])
def test_a_side_without_a_grid_is_refused_with_one_that_has(side):
    with pytest.raises(UsageError) as refused:
        sizes(side, large=False)
    sizes(int(refused.value.fix.split()[-1]), large=False)


def machine(seconds):
    """A machine on which a step on 16 pixels takes this long, and four times that at twice the side."""
    asked = []

    def measure(chosen):
        asked.append(chosen.image_size)
        return Speed(seconds * (chosen.image_size / 16) ** 2, seconds)

    return measure, asked


@pytest.mark.parametrize(("seconds", "side", "tried"), [(0.01, 64, [16, 32, 64]), (0.1, 32, [16, 32]), (3.0, 16, [16])])
def test_the_largest_images_that_the_time_allows_are_chosen(surveyed, seconds, side, tried):
    measure, asked = machine(seconds)
    decisions = decide(surveyed[0], Request(minutes=15), 720, measure, large=False)
    assert decisions.sizes.image_size == side and asked == tried and decisions.augment == "crop"
    assert decisions.seconds <= 15 * 60 and decisions.is_short == (seconds == 3.0)


def test_more_time_than_few_images_are_worth_is_not_used(surveyed):
    decisions = decide(surveyed[1], Request(minutes=1e4), 30, machine(0.1)[0], large=False)
    assert (decisions.tokenizer_steps, decisions.generator_steps) == (1200, 2000)
    assert decisions.sizes.image_size == 16 and decisions.augment == "affine"


def test_what_the_user_says_is_not_decided(surveyed):
    request = replace(Request(minutes=15, image_size=24), augment="none")
    decisions = decide(surveyed[0], request, 720, machine(0.1)[0], large=False)
    assert decisions.sizes.image_size == 24 and decisions.augment == "none"
    assert type(decisions).from_dict(decisions.to_dict()) == decisions
