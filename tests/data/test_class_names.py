"""What a model's class ids mean where nothing names them: numbers, in the order of training's folders."""

from __future__ import annotations

import pytest
from small_datasets import fill

from avarc_cli.data import imagenet1k, match
from avarc_cli.data.class_names import class_space, explain_numbers
from avarc_cli.errors import UsageError

FOLDERS = [str(i) for i in range(12)]


def ids_of(names, **options) -> list[int]:
    return match(names, class_space(12, None, options.get("class_names"), {}, options.get("order"))).tolist()


def test_folders_called_after_numbers_are_class_ids_in_either_order():
    assert ids_of(FOLDERS) == ids_of(FOLDERS, order="number") == list(range(12))
    by_text = sorted(FOLDERS)  # as torchvision's DatasetFolder numbers them
    assert ids_of(by_text, order="text") == list(range(12))
    assert ids_of(["11", "6", "12"], order="text") == [3, 8, -1]


@pytest.mark.parametrize("order", ["number", "text"])
def test_numbers_padded_with_zeros_have_the_same_order_either_way(order):
    assert ids_of([f"{i:03d}" for i in range(12)], order=order) == list(range(12))


def test_the_training_folder_names_the_classes_in_sorted_order(tmp_path):
    fill(tmp_path, *(f"{i}/a.png" for i in range(1, 12)))
    (tmp_path / "12").mkdir()  # empty ones count in torchvision, too
    (tmp_path / ".cache").mkdir()
    assert ids_of(["1", "10", "12", "2"], class_names=tmp_path) == [0, 1, 3, 4]
    with pytest.raises(UsageError, match="do not fit"):
        class_space(10, None, tmp_path, {})


def test_a_note_says_how_numbers_were_taken_and_offers_the_other_order():
    space = class_space(12, None, None, {})
    assert "--class-order text" in explain_numbers(FOLDERS, space) and "0, 1, 10, 11, 2" in explain_numbers(
        ["3"], space
    )
    assert "not 12" in explain_numbers(["1", "12"], space) and "--class-names" in explain_numbers(["1", "12"], space)
    assert "as text" in explain_numbers(FOLDERS, class_space(12, None, None, {}, "text"))
    assert "--class-order" not in explain_numbers(["1"], class_space(10, None, None, {}))  # the same either way
    assert explain_numbers(["cat"], space) == ""
    assert "--dataset imagenet-val" in explain_numbers(["1"], imagenet1k())


def test_an_order_is_refused_where_it_has_no_use():
    with pytest.raises(UsageError, match="no class order 'alphabet'"):
        class_space(12, None, None, {}, "alphabet")
    with pytest.raises(UsageError, match="no use for --class-order"):
        class_space(2, None, None, {"class_names": '["a", "b"]'}, "text")
    assert class_space(1000, None, None, {}) is imagenet1k()
    assert class_space(1000, None, None, {}, "text").ids[:3] == ("0", "1", "10")
