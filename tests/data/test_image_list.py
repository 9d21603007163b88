"""Lists of images: text with tabs, CSV, JSON lines, MXNet's .lst."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_datasets import fill

from avarc_cli.data import open_images
from avarc_cli.errors import UsageError


def labels(path: Path) -> dict[str, str | None]:
    images = open_images([path])
    return {n: images.class_names[k] if k >= 0 else None for n, k in zip(images.names, images.labels, strict=True)}


def listed(tmp_path: Path, name: str, text: str) -> Path:
    fill(tmp_path, "a.png", "b c.png")
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.txt", "a.png\tant\nb c.png\tbee\n"),
        ("x.tsv", "path\tlabel\na.png\tant\nb c.png\tbee\n"),
        ("x.csv", "file_name,label\na.png,ant\nb c.png,bee\n"),
        ("x.csv", "\ufeffLabel;Image Path\r\nant;a.png\r\nbee;b c.png\r\n"),
        ("x.csv", 'id,filename,class_name\n7,"a.png",ant\n8,"b c.png",bee\n'),
        ("x.csv", "photo,wnid\na.png,ant\nb c.png,bee\n"),
        ("x.csv", "a.png,ant\nb c.png,bee\n"),
        ("x.jsonl", '{"file_name": "a.png", "label": "ant"}\n\n{"label": ["bee"], "file_name": "b c.png"}\n'),
    ],
)
def test_a_list_may_have_any_common_form(tmp_path, name, text):
    assert labels(listed(tmp_path, name, text)) == {"a.png": "ant", "b c.png": "bee"}


def test_mxnets_lists_have_the_class_number_before_the_path(tmp_path):
    path = listed(tmp_path, "train.lst", "5\t7.000000\ta.png\n9\t12.000000\tb c.png\n")
    assert labels(path) == {"a.png": "7", "b c.png": "12"}
    assert any("classes in column 'label'" in note for note in open_images([path]).notes)


def test_unknown_classes_and_columns_that_are_not_used(tmp_path):
    path = listed(tmp_path, "x.csv", "file_name,label,fold,width\na.png,,1,8\nb c.png,-1,2,8\n")
    assert labels(path) == {"a.png": None, "b c.png": None}
    assert "columns that are not used: fold, width" in open_images([path]).notes


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("x.txt", "a.png\tant\nb c.png\tbee\t3\n", "line 2 has more than two columns"),
        ("x.lst", "0\t1.0\t4.0\ta.png\n", "line 1 has more than two columns"),
        ("x.csv", "id,breed\n000bec,boston_bull\n", "its columns are id, breed"),
        ("x.csv", "", "its columns are missing"),
        ("x.jsonl", '{"file_name": "a.png"}\n[1]\n', "line 2 is not a JSON object"),
        ("x.jsonl", json.dumps({"text": "an ant"}), "its columns are text"),
        ("x.txt", "a\0.\0p\0n\0g\0", "null characters"),
    ],
)
def test_what_is_not_a_list_is_refused_with_the_form_that_is_expected(tmp_path, name, text, reason):
    with pytest.raises(UsageError) as error:
        open_images([listed(tmp_path, name, text)])
    assert reason in error.value.why and error.value.fix
