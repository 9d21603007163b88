from __future__ import annotations

import numpy as np
import pytest

from avarc_cli.data import LabelSpace, datasets, human_name, imagenet1k, match, resolve_classes, subset
from avarc_cli.data.known import dataset_from_path, get_dataset
from avarc_cli.data.label_mapping import default_candidates, map_labels
from avarc_cli.errors import UsageError


def test_the_known_datasets_have_the_classes_they_are_published_with():
    sizes = {name: (len(known.ids), len(known.candidates)) for name, known in datasets().items()}
    assert sizes == {
        "imagenet-val": (1000, 1000),
        "imagenet-train": (1000, 1000),
        "imagenet-v2": (1000, 1000),
        "imagenet-a": (200, 200),
        "imagenet-r": (200, 200),
        "imagenet-sketch": (1000, 1000),
        "objectnet": (113, 125),
    }
    for known in datasets().values():
        assert list(known.ids) == sorted(set(known.ids)) and len(known.names) == len(known.ids)


def test_objectnet_maps_each_object_to_its_classes_of_imagenet():
    known = datasets()["objectnet"]
    chair = known.ids.index("chair")
    assert known.accepted[chair] == (423, 559, 765)  # barber chair, folding chair, rocking chair
    assert known.ids[known.names.index("Bath towel")] == "full_sized_towel"
    assert known.border == 2


def test_candidate_lists_can_be_named():
    assert len(resolve_classes("imagenet-a", imagenet1k())) == len(resolve_classes("imagenet-r", imagenet1k())) == 200
    assert resolve_classes("objectnet", imagenet1k()) == list(datasets()["objectnet"].candidates)
    assert resolve_classes("all", imagenet1k()) == list(range(1000))
    assert set(subset("imagenetr100")) < set(subset("imagenet-r"))
    assert set(subset("imageneta100")) < set(subset("imagenet-a"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/imagenet/val", "imagenet-val"),
        ("/data/ImageNet-1k/train", "imagenet-train"),
        ("/x/imagenetv2-matched-frequency-format-val", "imagenet-v2"),
        ("/x/imagenet-r", "imagenet-r"),
        ("/x/imagenet_a/val", "imagenet-a"),
        ("/x/sketch", "imagenet-sketch"),
        ("/x/objectnet-1.0/images", "objectnet"),
        ("/home/imagenet-r-experiments/photos", ""),
        ("/data/animals", ""),
        ("/data/imagenet/val/../other", ""),
    ],
)
def test_datasets_are_detected_from_paths(path, name):
    assert dataset_from_path(path) == name


def test_an_unknown_dataset_is_reported_with_the_closest_names():
    with pytest.raises(UsageError, match="no dataset 'imagenet-rr'") as error:
        get_dataset("imagenet-rr")
    assert "imagenet-r" in error.value.fix


def test_synsets_have_human_names():
    assert human_name("n01443537") == "goldfish"
    assert human_name("my class") == "my class"


def test_names_with_all_synonyms_are_matched_as_in_hub_datasets():
    assert match(["tench, Tinca tinca", "goldfish, Carassius auratus"], imagenet1k()).tolist() == [0, 1]


def test_letters_that_differ_only_in_case_are_different_classes():
    letters = LabelSpace("letters", ("a", "A", "b"), ("a", "A", "b"))
    assert match(["A", "a", "B"], letters).tolist() == [1, 0, 2]


def test_imagenet_classes_map_to_themselves():
    mapping = map_labels(["n01443537", "nonsense", "tench"], "imagenet-val", imagenet1k())
    assert mapping.label.tolist() == [1, -1, 0]
    assert np.array_equal(mapping.counts_as, np.arange(1000))
    assert mapping.to_model(np.array([0, -1, 2, 1])).tolist() == [1, -1, 0, -1]


def test_several_imagenet_classes_count_as_one_object():
    names = ("banana", "chair", "spork")
    mapping = map_labels(names, "objectnet", imagenet1k())
    chair = {p for p in range(1000) if mapping.counts_as[p] == mapping.label[1]}
    assert chair == {423, 559, 765}
    assert mapping.label.tolist() == [954, 423, -1]
    assert mapping.display_names[423] == ("chair", "Chair")
    assert mapping.counts_as[954] == 954


def test_an_object_outside_the_map_is_unknown_even_if_an_imagenet_class_has_its_name():
    assert map_labels(["tench"], "", imagenet1k()).label.tolist() == [0]
    assert map_labels(["tench"], "objectnet", imagenet1k()).label.tolist() == [-1]
    added = LabelSpace("with a bank", (*imagenet1k().ids, "stapler remover"), (*imagenet1k().names, "stapler remover"))
    assert map_labels(["stapler_remover"], "objectnet", added).label.tolist() == [1000]


def test_the_map_works_for_a_model_with_only_some_of_the_classes():
    few = LabelSpace("few", ("n03196217", "n02769748"), ("digital clock", "backpack"))
    mapping = map_labels(["alarm_clock", "backpack", "chair"], "objectnet", few)
    assert mapping.label.tolist() == [0, 1, -1]


@pytest.mark.parametrize(("name", "count"), [("imagenet-a", 200), ("imagenet-r", 200), ("objectnet", 125)])
def test_datasets_of_some_imagenet_classes_have_these_as_candidates(name, count):
    chosen = default_candidates(name, imagenet1k())
    assert chosen.tolist() == list(datasets()[name].candidates) and len(chosen) == count
    more = LabelSpace("with a bank", (*imagenet1k().ids, "mine"), (*imagenet1k().names, "mine"))
    assert default_candidates(name, more).tolist() == [*chosen.tolist(), 1000]


@pytest.mark.parametrize("name", ["", "imagenet-val", "imagenet-sketch", "from a later version"])
def test_other_datasets_have_all_classes_as_candidates(name):
    assert default_candidates(name, imagenet1k()) is None


def test_a_model_without_imagenet_classes_has_all_its_classes_as_candidates():
    assert default_candidates("imagenet-r", LabelSpace("digits", tuple("0123456789"), tuple("0123456789"))) is None


def test_objects_that_are_candidates_themselves_count_as_themselves():
    from avarc_cli.data.label_mapping import default_candidates
    from avarc_cli.text.captions import from_templates

    objects = datasets()["objectnet"].ids
    space = from_templates(["a {}"], objects).label_space
    mapping = map_labels(objects, "objectnet", space)
    assert mapping.label.tolist() == list(range(len(objects))) == mapping.counts_as.tolist()
    assert default_candidates("objectnet", space) is None
