"""Checks of datasets: what is recognized, what is missing, what is broken."""

from __future__ import annotations

import zlib

import pytest
from small_datasets import fill, picture, tar

from avarc_cli.data import datasets
from avarc_cli.data.check import check


def problems(report) -> dict[str, int]:
    return {problem.what: problem.count for problem in report.problems}


def test_what_a_known_dataset_lacks_is_counted(tmp_path):
    known = datasets()["imagenet-r"]
    fill(tmp_path / "imagenet-r", *(f"{synset}/art_0.jpg" for synset in known.ids[1:]), "n99999999/art_0.jpg")
    assert problems(check([tmp_path / "imagenet-r"])) == {
        "classes of ImageNet-R without images": 1,
        "classes that ImageNet-R does not have": 1,
        "images fewer than published": 29_800,
    }


def test_objectnets_other_objects_are_not_a_problem(tmp_path):
    fill(tmp_path / "objectnet-1.0/images", "chair/1.png", "air_freshener/2.png")
    report = check([tmp_path / "objectnet-1.0"])
    assert problems(report) == {"classes of ObjectNet without images": 112, "images fewer than published": 50_271}
    assert (report.expected_classes, report.layout) == (313, "folders in images/")


def bomb(side: int) -> bytes:
    """A PNG whose header declares a large square, with almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    root = fill(tmp_path / "x", "cat/1.png")
    (root / "cat/2.png").write_bytes(bomb(40_000))
    (problem,) = check([root], decode=None).problems
    assert problem.unreadable and "1600000000 pixels" in problem.examples[0]


def test_stray_files_empty_folders_and_duplicate_classes_are_reported(tmp_path):
    root = fill(tmp_path / "x", "great white shark/1.png", "great_white_shark/2.png", "ant/deep/3.png")
    (root / "ant/photo.jpgx").write_bytes(picture())
    (root / "ant/deep/noext").write_bytes(picture())
    (root / "bee").mkdir()
    (root / ".hidden").mkdir()
    found = problems(check([root]))
    assert found == {
        "classes that differ only in spelling": 1,
        "files without an image suffix in class folders": 1,
        "class folders without images": 1,
    }


def test_unknown_synsets_in_a_list_are_reported(tmp_path):
    fill(tmp_path, "1.png", "2.png")
    (tmp_path / "list.txt").write_text("1.png\tn01443537\n2.png\tn99999999\n3.png\n")
    report = check([tmp_path / "list.txt"])
    assert problems(report)["synsets that ImageNet-1k does not have"] == 1
    assert problems(report)["images without a label"] == 1
    assert problems(report)["images that cannot be read"] == 1


def test_shards_and_tables_are_checked_too(tmp_path):
    path = tar(tmp_path / "x.tar", {"1.png": picture(), "1.cls": b"0", "2.png": b"", "2.cls": b"1"})
    assert problems(check([path])) == {"images that cannot be read": 1}
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [picture(), b"broken"]}), tmp_path / "y.parquet")
    assert problems(check([tmp_path / "y.parquet"], decode=None)) == {"images that cannot be read": 1}
