"""Labels in a file beside the images: metadata.jsonl, metadata.csv, labels.csv."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from small_datasets import fill

from avarc_cli.cli import main
from avarc_cli.data import open_images


def labels(path: Path) -> dict[str, str | None]:
    images = open_images([path])
    return {n: images.class_names[k] if k >= 0 else None for n, k in zip(images.names, images.labels, strict=True)}


def rows(**classes: str) -> str:
    return "".join(json.dumps({"file_name": f"{name}.png", "label": label}) + "\n" for name, label in classes.items())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", rows(a="ant", b="bee")),
        ("metadata.csv", "file_name,label,width\na.png,ant,8\nb.png,bee,8\n"),
        ("labels.csv", "filename,class_name\nb.png,bee\na.png,ant\n"),
        ("Labels.tsv", "image\twnid\nb.png\tbee\na.png\tant\n"),
    ],
)
def test_images_without_folders_get_their_labels(tmp_path, name, text, capsys):
    fill(tmp_path / "x", "a.png", "b.png")
    (tmp_path / "x" / name).write_text(text)
    assert labels(tmp_path / "x") == {"a.png": "ant", "b.png": "bee"}
    assert main(["data", "check", str(tmp_path / "x")]) == 0
    assert f"classes of 2 images from '{name}'" in capsys.readouterr().out


def test_paths_are_relative_to_the_label_file_and_may_have_decomposed_letters(tmp_path):
    fill(tmp_path / "x", "train/" + unicodedata.normalize("NFD", "é.png"), "train/deep/b.png", "test/c.png")
    (tmp_path / "x/train/metadata.jsonl").write_text(rows(é="ant", **{"deep/b": "bee", "../test/c": "cat"}))
    assert sorted(filter(None, labels(tmp_path / "x").values())) == ["ant", "bee", "cat"]


def test_splits_are_no_classes_where_a_label_file_says_otherwise(tmp_path):
    fill(tmp_path / "x", "train/a.png", "train/b.png", "test/c.png")
    (tmp_path / "x/train/metadata.csv").write_text("file_name,label\na.png,ant\nb.png,bee\n")
    assert labels(tmp_path / "x") == {"train/a.png": "ant", "train/b.png": "bee", "test/c.png": None}
    (note,) = open_images([tmp_path / "x"]).notes
    assert "not from the folders train" in note and "does not name 1 others" in note


def test_class_folders_keep_their_names_where_the_label_file_divides_the_images_alike(tmp_path):
    fill(tmp_path / "x", "ant/a.png", "ant/b.png", "bee/c.png")
    (tmp_path / "x/labels.csv").write_text("path,label\nant/a.png,0\nbee/c.png,1\n")
    assert labels(tmp_path / "x") == {"ant/a.png": "ant", "ant/b.png": "ant", "bee/c.png": "bee"}


def test_a_label_file_counts_more_than_folders_that_it_contradicts(tmp_path):
    fill(tmp_path / "x", "batch1/a.png", "batch1/b.png", "batch2/c.png")
    (tmp_path / "x/labels.csv").write_text("path,label\nbatch1/a.png,ant\nbatch1/b.png,bee\nbatch2/c.png,ant\n")
    assert labels(tmp_path / "x") == {"batch1/a.png": "ant", "batch1/b.png": "bee", "batch2/c.png": "ant"}
    assert any("not from the folders batch1, batch2" in note for note in open_images([tmp_path / "x"]).notes)


def test_class_folders_of_a_known_dataset_count_more_than_a_label_file(tmp_path):
    fill(tmp_path / "val", "n01440764/a.JPEG", "n01443537/b.JPEG", "n01443537/c.JPEG")
    (tmp_path / "val/labels.csv").write_text("path,label\nn01443537/b.JPEG,0\nn01443537/c.JPEG,1\n")
    images = open_images([tmp_path / "val"])
    assert (images.dataset, images.class_names) == ("imagenet-val", ("n01440764", "n01443537"))
    assert any("labels that are not used" in note and "labels.csv" in note for note in images.notes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file_name,text\ncat/a.png,a cat\n", "there are no classes in its columns, file_name, text"),
        ("id,breed\na,terrier\n", "its columns are id, breed"),
        ("file_name,label\nother/a.png,ant\n", "names none of the 2 images"),
    ],
)
def test_a_label_file_that_says_nothing_about_the_classes_is_noted(tmp_path, text, reason):
    fill(tmp_path / "x", "cat/a.png", "dog/b.png")
    (tmp_path / "x/metadata.csv").write_text(text)
    assert labels(tmp_path / "x") == {"cat/a.png": "cat", "dog/b.png": "dog"}
    assert any(reason in note for note in open_images([tmp_path / "x"]).notes)


def test_an_image_with_two_classes_gets_none(tmp_path):
    fill(tmp_path / "x", "a.png", "b.png")
    (tmp_path / "x/labels.csv").write_text("path,label\na.png,ant\nb.png,bee\na.png,cat\n")
    assert labels(tmp_path / "x") == {"a.png": None, "b.png": "bee"}
    assert any("several classes" in note and "a.png" in note for note in open_images([tmp_path / "x"]).notes)
