"""A fixed number of images per class."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from small_datasets import fill

from avarc_cli.data import open_images
from avarc_cli.data.per_class import first_per_class


@given(
    st.lists(st.tuples(st.integers(-1, 4), st.text("ab_1", max_size=4)), max_size=40), st.integers(1, 6), st.booleans()
)
def test_each_class_gives_its_number_and_unlabeled_images_none(images, per_class, by_style):
    labels = np.array([label for label, _ in images], dtype=np.int32)
    names = [f"{name}{i}" for i, (_, name) in enumerate(images)]
    rows = first_per_class(labels, names, per_class, by_style=by_style)
    assert rows.tolist() == sorted(set(rows.tolist()))
    for label in range(5):
        assert (labels[rows] == label).sum() == min(per_class, (labels == label).sum())
    assert (labels[rows] >= 0).all()
    shuffled = np.random.default_rng(0).permutation(len(images))  # the selection depends on names, not on order
    again = first_per_class(labels[shuffled], [names[i] for i in shuffled], per_class, by_style=by_style)
    assert {names[shuffled[r]] for r in again} == {names[r] for r in rows}


def test_imagenet_r_alternates_styles_by_number_within_each(tmp_path):
    goldfish = ["art_2", "art_10", "art_0", "cartoon_1", "sculpture_7", "sculpture_3", "video_game_4"]
    fill(tmp_path / "imagenet-r", *(f"n01443537/{name}.jpg" for name in goldfish), "n01484850/art_10.jpg")
    images = open_images([tmp_path / "imagenet-r"])

    def selected(count: int) -> list[str]:
        names = images.select(None, count, None).names
        return [n.removeprefix("n01443537/").removesuffix(".jpg") for n in names if "n01443537" in n]

    assert selected(1) == ["art_0"]
    assert selected(3) == ["art_0", "cartoon_1", "sculpture_3"]
    assert selected(4) == ["art_0", "cartoon_1", "sculpture_3", "video_game_4"]
    assert selected(5) == ["art_0", "art_2", "cartoon_1", "sculpture_3", "video_game_4"]
    assert len(selected(100)) == 7


def test_other_datasets_take_the_first_by_name(tmp_path):
    fill(tmp_path / "imagenet-sketch", *(f"n01443537/{name}.jpg" for name in ("a_10", "a_2", "b_0")))
    images = open_images([tmp_path / "imagenet-sketch"])
    assert images.select(None, 2, None).names == ("n01443537/a_10.jpg", "n01443537/a_2.jpg")
