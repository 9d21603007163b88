from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avarc_cli.data import LabelSpace, imagenet1k, match, resolve_classes, subset
from avarc_cli.errors import UsageError

DIGITS = LabelSpace("digits", tuple("0123456789"), tuple("0123456789"))
SUBSETS = ("imagenet100", "imageneta100", "imagenetr100")


def test_imagenet_has_1000_classes_sorted_by_synset():
    space = imagenet1k()
    assert len(space) == 1000
    assert list(space.ids) == sorted(set(space.ids))
    assert (space.ids[0], space.names[0]) == ("n01440764", "tench")
    assert (space.ids[999], space.names[999]) == ("n15075141", "toilet tissue")


@pytest.mark.parametrize("name", SUBSETS)
def test_named_subsets_have_100_imagenet_classes(name):
    assert len(subset(name)) == 100
    indices = resolve_classes(name, imagenet1k())
    assert len(indices) == 100
    assert {imagenet1k().ids[index] for index in indices} == set(subset(name))


@given(st.lists(st.integers(0, 999), min_size=1, max_size=30))
def test_indices_and_synsets_resolve_to_what_they_came_from(indices):
    expected = sorted(set(indices))
    assert resolve_classes(",".join(map(str, indices)), imagenet1k()) == expected
    assert resolve_classes(", ".join(imagenet1k().ids[i] for i in indices), imagenet1k()) == expected


@given(st.lists(st.integers(0, 999), max_size=30))
def test_matching_is_by_name_and_never_by_order(indices):
    space = imagenet1k()
    assert match([space.ids[i] for i in indices], space).tolist() == indices
    shared = {"crane", "maillot", "cardigan"}
    shouted = [space.names[i].upper().replace(" ", "_") for i in indices]
    assert match(shouted, space).tolist() == [-1 if space.names[i].lower() in shared else i for i in indices]


def test_matching_ignores_numbers_and_ambiguous_names():
    assert match(["0", "crane", "Great_White_Shark", "nonsense"], imagenet1k()).tolist() == [-1, -1, 2, -1]
    assert match(["7", "0"], DIGITS).tolist() == [7, 0]
    assert match([], DIGITS).shape == (0,)


def test_classes_resolve_by_human_name_and_from_a_file(tmp_path):
    assert resolve_classes("goldfish, Great_White shark,0", imagenet1k()) == [0, 1, 2]
    (tmp_path / "classes.txt").write_text("\ufeff# mine\nn01443537\n\ntench\n5\n", encoding="utf-8")
    assert resolve_classes(str(tmp_path / "classes.txt"), imagenet1k()) == [0, 1, 5]
    assert subset(str(tmp_path / "classes.txt")) == ("n01443537", "tench", "5")


def test_in_a_space_with_numbers_as_ids_a_number_is_an_id():
    odd = LabelSpace("odd", ("1", "3", "5"), ("one", "three", "five"))
    assert resolve_classes("3,1", odd) == [0, 1]
    assert resolve_classes("three", odd) == [1]
    with pytest.raises(UsageError, match="not classes of odd: 0"):
        resolve_classes("0,1", odd)


def test_a_class_takes_precedence_over_a_file_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tench").write_text("goldfish\n")
    assert resolve_classes("tench", imagenet1k()) == [0]
    assert resolve_classes("./tench", imagenet1k()) == [1]


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("goldfsh", "did you mean goldfish"),
        ("n0144353", "n01443537"),
        ("1000", "indices 0 to 999"),
        ("-1", "not classes of imagenet1k: -1"),
        ("a,b,c,d,e,f,g", "a, b, c, d, e and 2 more"),
        ("crane", "use an id: n02012849 or n03126707"),
        ("", "empty"),
        (" , ", "empty"),
        ("x" * 5000, "not classes"),
        ("nul\0", "not classes"),
        ("²", "not classes"),
    ],
)
def test_unknown_classes_are_reported_with_the_closest_ones(spec, shown):
    with pytest.raises(UsageError) as error:
        resolve_classes(spec, imagenet1k())
    assert shown in str(error.value)


def test_a_subset_of_another_space_and_bad_files_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="not classes of digits"):
        resolve_classes("imagenet100", DIGITS)
    with pytest.raises(UsageError, match="no class subset 'imagenet10'") as error:
        subset("imagenet10")
    assert "imagenet100" in error.value.fix
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read the class list"):
        subset(str(tmp_path / "binary"))
    (tmp_path / "blank").write_text("\n # nothing\n")
    with pytest.raises(UsageError, match="is empty"):
        resolve_classes(str(tmp_path / "blank"), DIGITS)
