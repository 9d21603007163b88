"""avarc data check: which dataset is recognized, and which problems are found."""

from __future__ import annotations

import json
import os
import zlib

import pytest
from small_datasets import fill, picture, tar

from avarc_cli.cli import main
from avarc_cli.data import check as check_module
from avarc_cli.data import datasets
from avarc_cli.data.check import check


def problems(report) -> dict[str, int]:
    return {problem.what: problem.count for problem in report.problems}


def test_a_clean_folder_has_no_problems(tmp_path, capsys):
    fill(tmp_path / "x", "cat/1.png", "cat/2.png", "dog/3.png")
    assert main(["--json", "data", "check", str(tmp_path / "x"), "--decode", "all"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["images"], output["classes"], output["per_class"], output["decoded"]) == (3, 2, [1, 2], 3)
    assert output["problems"] == [] and output["dataset"] == ""


def test_differences_from_a_known_dataset_are_listed_by_name(tmp_path, capsys):
    known = datasets()["imagenet-r"]
    fill(tmp_path / "imagenet-r", *(f"{synset}/art_0.jpg" for synset in known.ids[1:]), "n99999999/art_0.jpg")
    assert main(["data", "check", str(tmp_path / "imagenet-r")]) == 1
    shown = capsys.readouterr().out
    assert "imagenet-r" in shown and "200 of 30,000 published" in shown
    assert "n01443537 (goldfish)" in shown and "n99999999" in shown
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


def test_unreadable_images_are_listed_and_give_exit_code_3(tmp_path, capsys, monkeypatch):
    root = fill(tmp_path / "x", "cat/1.png", "cat/5.png")
    (root / "cat/0.png").touch()
    (root / "cat/2.jpg").write_bytes(picture(2, "JPEG", (64, 64))[:900])
    (root / "cat/3.png").write_text("not a picture")
    (root / "cat/4.png").symlink_to("gone")
    monkeypatch.setattr(check_module, "ALWAYS_DECODED", 0)
    assert main(["--quiet", "data", "check", str(root)]) == 3
    count, what = capsys.readouterr().out.split(maxsplit=1)
    assert (count, what) == ("2", "images that cannot be read\n")  # without decoding: the empty one, the dead link
    monkeypatch.undo()
    assert main(["--json", "data", "check", str(root)]) == 3  # a set this small is always decoded
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["count"] == 4 and problem["examples"][0] == "cat/0.png: the file is empty"
    assert "not an image" in problem["examples"][2]


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


@pytest.mark.parametrize("decode", ["-1", "x", "1.5", ""])
def test_an_invalid_number_to_decode_is_a_usage_error(tmp_path, decode, capsys):
    assert main(["data", "check", str(fill(tmp_path / "x", "1.png")), "--decode", decode]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_empty_and_a_missing_folder_are_usage_errors(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty")]) == 2
    assert main(["data", "check", str(tmp_path / "none")]) == 2
    assert "no images in" in capsys.readouterr().err


def test_a_folder_without_permission_is_a_usage_error(tmp_path, monkeypatch):
    """Tests may run as root, which may list anything, so the error is simulated."""
    fill(tmp_path / "x", "cat/1.png")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert main(["data", "check", str(tmp_path / "x")]) == 2
