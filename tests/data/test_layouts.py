"""Known datasets in the folder layouts that people have."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_datasets import fill, picture

from avarc_cli.data import LabelSpace, Preprocess, datasets, imagenet1k, imagenet_val, match, open_images
from avarc_cli.errors import UnreadableImage, UsageError

IDS = imagenet1k().ids


def labels(images) -> dict[str, str | None]:
    """Class of each image by name."""
    return {n: images.class_names[k] if k >= 0 else None for n, k in zip(images.names, images.labels, strict=True)}


@pytest.mark.parametrize("wanted", [None, "imagenet-val"])
def test_folders_of_synsets_under_val_are_imagenet_validation(tmp_path, wanted):
    fill(tmp_path / "imagenet/val", "n01443537/ILSVRC2012_val_00000236.JPEG", "n01440764/ILSVRC2012_val_00000293.JPEG")
    images = open_images([tmp_path / "imagenet/val"], wanted)
    assert (images.dataset, images.class_names) == ("imagenet-val", ("n01440764", "n01443537"))
    assert labels(images)["n01443537/ILSVRC2012_val_00000236.JPEG"] == "n01443537"
    assert "recognized ImageNet validation (imagenet-val)" in images.notes[0]


def test_other_files_are_counted_in_one_note_and_those_of_systems_skipped(tmp_path):
    fill(tmp_path / "pets", "cat/1.png", "cat/2.jfif", "dog/3.png", "dog/@eaDir/3.png", "__MACOSX/cat/1.png")
    for name in ("cat/4.HEIC", "cat/5.heic", "dog/readme.txt", "dog/LICENSE", "dog/Thumbs.db", "dog/.DS_Store"):
        (tmp_path / "pets" / name).write_bytes(b"x")
    images = open_images([tmp_path / "pets"])
    assert images.names == ("cat/1.png", "cat/2.jfif", "dog/3.png") and images.class_names == ("cat", "dog")
    assert [note for note in images.notes if "not images" in note] == [
        "files that are not images: 2 .heic, 1 .txt, 1 without a suffix"
    ]


@pytest.mark.parametrize(
    ("names", "dataset", "synsets"),
    [
        (["ILSVRC2012_val_00000001_n01751748.JPEG", "ILSVRC2012_val_00000002_n09193705.JPEG"], "imagenet-val", 2),
        (["n01440764_10026_n01440764.JPEG", "n01443537_10007_n01443537.JPEG"], "imagenet-train", 2),
        (["n01440764_10026.JPEG", "n01443537_10007.JPEG", "n01443537_3.JPEG"], "imagenet-train", 2),
        (["n01440764_10026.JPEG", "logo.png"], "", 1),
    ],
)
def test_synsets_are_read_from_the_names_of_flat_images(tmp_path, names, dataset, synsets):
    images = open_images([fill(tmp_path / "x", *names)])
    assert images.dataset == dataset and len(images.class_names) == synsets
    for name, label in labels(images).items():
        assert (label or "logo") in name
    assert open_images([tmp_path / "x"], "none").class_names == ()


def test_flat_images_with_synsets_are_found_in_a_folder_that_only_wraps_them(tmp_path):
    images = open_images([fill(tmp_path / "x", "train/n01440764_10026.JPEG", "train/n01443537_3.JPEG")])
    assert images.dataset == "imagenet-train" and images.class_names == (IDS[0], IDS[1])


@pytest.mark.parametrize("inner", ["tench", "0", "red"])
def test_class_folders_count_whatever_the_files_in_them_are_called(tmp_path, inner):
    """Also with a label file one folder up, which is about other classes."""
    fill(tmp_path / "val", f"{inner}/ILSVRC2012_val_00000001.JPEG", "goldfish/n01440764_1.JPEG")
    synset_per_line(tmp_path)
    for root in (tmp_path / "val", tmp_path):
        assert open_images([root]).class_names == tuple(sorted((inner, "goldfish")))
    if inner != "red":
        assert open_images([tmp_path / "val"], "imagenet-val").class_names == (IDS[0], IDS[1])


def test_numbers_from_1_are_not_taken_for_imagenets_indices(tmp_path):
    """The devkit counts from 1, in an order of its own."""
    fill(tmp_path / "val", *(f"{number}/ILSVRC2012_val_00000001.JPEG" for number in (1, 2, 1000)))
    assert open_images([tmp_path / "val"]).class_names == ("1", "1000", "2")
    with pytest.raises(UsageError, match="has a class 1000") as error:
        open_images([tmp_path / "val"], "imagenet-val")
    assert "0 to 999" in error.value.why and "devkit" in error.value.why
    fill(tmp_path / "some", "1/a.JPEG", "2/b.JPEG")
    assert any("indices of ImageNet-1k" in note for note in open_images([tmp_path / "some"], "imagenet-val").notes)


def test_a_single_folder_whose_name_says_that_it_is_no_class_is_looked_into(tmp_path):
    fill(tmp_path / "x", "images/train/cat/1.png", "images/train/dog/2.png")
    images = open_images([tmp_path / "x"])
    assert images.class_names == ("cat", "dog") and images.names[0] == "images/train/cat/1.png"
    assert "folders in images/train/" in images.notes


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (["pets/cat/1.png", "pets/dog/1.png"], True),
        (["train/cat/1.png", "test/dog/1.png"], True),
        (["gaussian_noise/1/n01440764/1.png", "gaussian_noise/1/n01443537/1.png"], True),
        (["cat/images/1.png", "cat/images/2.png"], False),
        (["cat/indoor/1.png", "dog/outdoor/2.png"], False),
    ],
)
def test_classes_that_may_be_one_folder_further_in_are_noted(tmp_path, names, noted):
    notes = open_images([fill(tmp_path / "x", *names)]).notes
    assert any("if they are those inside" in note for note in notes) is noted


def test_names_in_composed_and_decomposed_letters_are_one_class(tmp_path):
    """macOS and archives made there decompose é into e and an accent."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    fill(tmp_path / "x", f"{composed}/1.png", f"{decomposed}/2.png", "tea/3.png")
    images = open_images([tmp_path / "x"])
    assert images.class_names == (composed, "tea") and images.labels.tolist().count(0) == 2
    assert any("composed and with decomposed letters" in note for note in images.notes)
    assert len(images.select([decomposed], None, None)) == 2
    assert match([decomposed], LabelSpace("x", (composed,), (composed,))).tolist() == [0]
    assert match([composed], LabelSpace("x", (decomposed,), (decomposed,))).tolist() == [0]


def test_none_turns_detection_off(tmp_path):
    fill(tmp_path / "val", "n01443537/1.png")
    assert open_images([tmp_path / "val"], "none").dataset == ""
    with pytest.raises(UsageError, match="no dataset 'imagenet'"):
        open_images([tmp_path / "val"], "imagenet")


def test_file_names_identify_the_split_if_folders_do_not(tmp_path):
    fill(tmp_path / "a", "n01443537/ILSVRC2012_val_00000236.JPEG")
    fill(tmp_path / "b", "n01443537/n01443537_10007.JPEG")
    fill(tmp_path / "c", "n01443537/1.jpg")
    assert [open_images([tmp_path / n]).dataset for n in "abc"] == ["imagenet-val", "imagenet-train", ""]


def test_train_and_val_in_one_folder_need_a_choice(tmp_path):
    fill(tmp_path, "train/n01443537/1.JPEG", "val/n01443537/2.JPEG")
    with pytest.raises(UsageError, match="several image sets") as error:
        open_images([tmp_path])
    assert "train (imagenet-train), val (imagenet-val)" in error.value.why
    assert open_images([tmp_path], "imagenet-val").names == ("val/n01443537/2.JPEG",)
    assert open_images([tmp_path], "imagenet-train").names == ("train/n01443537/1.JPEG",)
    assert open_images([tmp_path], "none").class_names == ("train", "val")


def test_folder_names_are_class_numbers_in_v2(tmp_path):
    """Sorted as text, 10 comes before 2, so the position of a folder is not its number."""
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    fill(root, *(f"{k}/x{k}.jpeg" for k in (0, 1, 2, 10, 100, 999)))
    images = open_images([root])
    assert images.dataset == "imagenet-v2"
    assert labels(images) == {f"{k}/x{k}.jpeg": IDS[k] for k in (0, 1, 2, 10, 100, 999)}
    assert open_images([tmp_path]).dataset == "imagenet-v2"  # the folder that the archive unpacks to is searched
    moved = fill(tmp_path / "elsewhere", "0/a.jpeg", "10/b.jpeg")
    assert open_images([moved]).class_names == ("0", "10")  # could be any dataset, so none is assumed
    assert open_images([moved], "imagenet-v2").class_names == (IDS[0], IDS[10])


def test_numbered_folders_outside_of_v2_stay_numbers(tmp_path):
    fill(tmp_path / "digits/val", "0/a.png", "7/b.png")
    assert open_images([tmp_path / "digits/val"]).class_names == ("0", "7")


def test_a_and_r_are_detected_by_their_exact_classes(tmp_path):
    for name in ("imagenet-a", "imagenet-r"):
        root = fill(tmp_path / name[-1] / "stuff", *(f"{synset}/x_0.jpg" for synset in datasets()[name].ids))
        assert open_images([root]).dataset == name
        os.remove(root / datasets()[name].ids[0] / "x_0.jpg")
        os.rmdir(root / datasets()[name].ids[0])
        assert open_images([root]).dataset == ""


def test_class_folders_may_have_human_names_if_the_dataset_is_given(tmp_path):
    fill(tmp_path / "x", "Goldfish/1.png", "great_white_shark/2.png", "n01484850/3.png")
    images = open_images([tmp_path / "x"], "imagenet-r")
    assert images.class_names == ("n01443537", "n01484850")
    assert images.labels.tolist() == [0, 1, 1]
    with pytest.raises(UsageError, match="is not ObjectNet"):
        open_images([tmp_path / "x"], "objectnet")


@pytest.fixture
def objectnet(tmp_path: Path) -> Path:
    """Two known objects and one that ImageNet has no class for; all images have the border."""
    for name in ("alarm_clock", "chair", "air_freshener"):
        pixels = np.full((14, 12, 3), (255, 0, 0), dtype=np.uint8)
        pixels[2:-2, 2:-2] = (0, 0, len(name) * 9)
        path = tmp_path / "objectnet-1.0" / "images" / name / "a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "objectnet-1.0" / "mappings").mkdir()
    (tmp_path / "objectnet-1.0" / "mappings" / "folder_to_objectnet_label.json").write_text("{}")
    return tmp_path / "objectnet-1.0"


@pytest.mark.parametrize("below", ["", "images"])
def test_objectnet_images_lose_their_border(objectnet, below):
    images = open_images([objectnet / below])
    assert images.dataset == "objectnet" and images.class_names == ("air_freshener", "alarm_clock", "chair")
    pixels = images.load(1, Preprocess("fit", 8))
    assert pixels.shape == (8, 8, 3) and (pixels == (0, 0, len("alarm_clock") * 9)).all()
    assert images.classes_outside_imagenet() == ("air_freshener",)


def test_single_images_lose_their_border_if_the_dataset_is_given(objectnet):
    path = objectnet / "images/chair/a.png"
    images = open_images([path], "objectnet")
    assert (images.load(0, Preprocess("fit", 8)) == (0, 0, len("chair") * 9)).all()
    assert open_images([path]).dataset == ""


def test_an_objectnet_image_that_is_all_border_is_unreadable(objectnet):
    Image.new("RGB", (4, 9)).save(objectnet / "images/chair/a.png")
    images = open_images([objectnet])
    with pytest.raises(UnreadableImage, match="chair"):
        images.load(2, Preprocess("fit", 8))


def test_objectnet_classes_are_selected_by_folder_name_title_or_synset(objectnet):
    images = open_images([objectnet])
    for spelling in ("alarm_clock", "Alarm clock", "n02708093", "n03196217"):
        assert images.select([spelling], None, None).class_names == ("alarm_clock",)


def flat(root: Path, numbers=(1, 2, 293)) -> Path:
    return fill(root, *(f"ILSVRC2012_val_{n:08d}.JPEG" for n in numbers))


SYNSET_OF = {1: "n01751748", 2: "n09193705", 293: "n01440764"}


def kaggle(root: Path) -> None:
    rows = [f"ILSVRC2012_val_{n:08d},{s} 85 1 499 272 " for n, s in SYNSET_OF.items()]
    (root / imagenet_val.KAGGLE).write_text("ImageId,PredictionString\n" + "\n".join(reversed(rows)) + "\n")


def synset_per_line(root: Path) -> None:
    (root / imagenet_val.SYNSETS).write_text("\n".join(SYNSET_OF.get(n, IDS[5]) for n in range(1, 400)) + "\n")


def caffe(root: Path) -> None:
    rows = [f"ILSVRC2012_val_{n:08d}.JPEG {IDS.index(s)}" for n, s in SYNSET_OF.items()]
    (root / imagenet_val.CAFFE).write_text("\n".join(rows))


def devkit(root: Path) -> None:
    """The devkit's order is not the sorted one: here it is reversed."""
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    order = list(reversed(IDS))
    numbers = [1 + order.index(SYNSET_OF.get(n, IDS[5])) for n in range(1, 400)]
    (data / imagenet_val.DEVKIT).write_text("\n".join(map(str, numbers)) + "\n")
    (data / "map_clsloc.txt").write_text("".join(f"{s} {i} some_name\n" for i, s in enumerate(order, start=1)))


def meta(root: Path) -> None:
    io = pytest.importorskip("scipy.io")
    devkit(root)
    data = root / "ILSVRC2012_devkit_t12" / "data"
    (data / "map_clsloc.txt").unlink()
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(i, s, "word", 0) for i, s in enumerate(reversed(IDS), start=1)] + [(1001, "n00000001", "inner", 3)]
    io.savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})


@pytest.mark.parametrize("write", [kaggle, synset_per_line, caffe, devkit, meta])
@pytest.mark.parametrize("above", [False, True])
def test_flat_validation_images_get_labels_from_a_label_file(tmp_path, write, above):
    root = flat(tmp_path / "val")
    write(tmp_path if above else root)
    images = open_images([root])
    assert images.dataset == "imagenet-val"
    assert labels(images) == {f"ILSVRC2012_val_{n:08d}.JPEG": s for n, s in SYNSET_OF.items()}


def test_without_a_label_file_they_are_unlabeled_with_a_note(tmp_path):
    images = open_images([flat(tmp_path / "val")])
    assert images.labels.tolist() == [-1, -1, -1]
    assert any(imagenet_val.DEVKIT in note for note in images.notes)


def test_ground_truth_without_the_devkits_class_order_is_rejected(tmp_path):
    root = flat(tmp_path / "val")
    devkit(tmp_path)
    (tmp_path / "ILSVRC2012_devkit_t12/data/map_clsloc.txt").unlink()
    with pytest.raises(UsageError, match="devkit's own order") as error:
        open_images([root])
    assert "map_clsloc.txt" in error.value.fix and "meta.mat" in error.value.fix
    assert open_images([root], "none").labels.tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (imagenet_val.KAGGLE, "ILSVRC2012_val_00000001,n99999999 1 2 3 4\n"),
        (imagenet_val.SYNSETS, "n01440764\nn99999999\n"),
        (imagenet_val.CAFFE, "ILSVRC2012_val_00000001.JPEG 1000\n"),
        (imagenet_val.SYNSETS, "\x00\xff"),
    ],
)
def test_a_label_file_with_unknown_classes_is_rejected(tmp_path, name, text):
    root = flat(tmp_path / "val")
    (root / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as error:
        open_images([root])
    assert name in str(error.value)


def test_classes_are_selected_by_synset_or_human_name(tmp_path):
    """Whichever of the two the folders have."""
    fill(tmp_path / "a", "goldfish/1.png", "tench/2.png")
    fill(tmp_path / "b", "n01443537/1.png", "n01440764/2.png")
    for folder in "ab":
        images = open_images([tmp_path / folder])
        for name in ("goldfish", "Goldfish", "n01443537"):
            assert len(images.select([name], None, None)) == 1


def test_two_spellings_of_a_class_are_noted_and_selected_together(tmp_path):
    fill(tmp_path / "x", "great white shark/1.png", "great_white_shark/2.png", "crane/3.png")
    images = open_images([tmp_path / "x"])
    assert any("great white shark and great_white_shark" in note for note in images.notes)
    assert len(images.select(["Great White Shark"], None, None)) == 2
    fill(tmp_path / "x", "n01484850/4.png")
    assert len(open_images([tmp_path / "x"]).select(["great white shark"], None, None)) == 3


def test_unusual_names_and_loops_work(tmp_path):
    root = fill(tmp_path / "x", "日本/é\n.png", "a b/' \".png", "a b/%00.PNG", "a b/🐟.png")
    with open(os.path.join(os.fsencode(root), b"caf\xe9.png"), "wb") as file:
        file.write(picture())
    (root / "a b" / "loop").symlink_to(root)
    images = open_images([root])
    assert len(images) == 5 and images.class_names == ("a b", "日本")
    assert all(images.load(i, Preprocess("fit", 8)).shape == (8, 8, 3) for i in range(5))


def test_inputs_of_different_kinds_can_be_combined(tmp_path):
    fill(tmp_path, "f/cat/1.png", "g/cat/2.png", "single.png")
    (tmp_path / "list.txt").write_text("single.png\tdog\n")
    images = open_images([tmp_path / "f", tmp_path / "single.png", tmp_path / "g", tmp_path / "list.txt"])
    assert [images.class_names[k] if k >= 0 else None for k in images.labels] == ["cat", None, "cat", "dog"]
    part = images.select(["dog", "cat"], None, None)
    assert len(part) == 3 and all(part.load(i, Preprocess("fit", 8)).shape == (8, 8, 3) for i in range(3))


def test_objectnet_cannot_be_mixed_with_images_without_border(objectnet, tmp_path):
    fill(tmp_path, "other/cat/1.png")
    with pytest.raises(UsageError, match="mixes ObjectNet"):
        open_images([objectnet, tmp_path / "other"])
