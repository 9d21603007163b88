"""`avarc data check`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os

import pytest
from small_datasets import fill, picture

from avarc_cli.cli import main
from avarc_cli.data import check as check_module
from avarc_cli.data import datasets


def test_a_clean_folder_has_no_problems(tmp_path, capsys):
    fill(tmp_path / "x", "cat/1.png", "cat/2.png", "dog/3.png")
    assert main(["--json", "data", "check", str(tmp_path / "x"), "--decode", "all"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["classes"], found["per_class"], found["decoded"]) == (3, 2, [1, 2], 3)
    assert found["problems"] == [] and found["dataset"] == ""


def test_missing_classes_of_a_known_dataset_are_listed_by_name(tmp_path, capsys):
    known = datasets()["imagenet-r"]
    fill(tmp_path / "imagenet-r", *(f"{synset}/art_0.jpg" for synset in known.ids[1:]), "n99999999/art_0.jpg")
    assert main(["data", "check", str(tmp_path / "imagenet-r")]) == 1
    shown = capsys.readouterr().out
    assert "imagenet-r" in shown and "200 of 30,000 published" in shown
    assert "n01443537 (goldfish)" in shown and "n99999999" in shown


def test_what_cannot_be_read_is_listed_and_is_exit_code_3(tmp_path, capsys, monkeypatch):
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
    assert main(["--json", "data", "check", str(root)]) == 3  # so few are decoded without being asked
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["count"] == 4 and problem["examples"][0] == "cat/0.png: the file is empty"
    assert "not an image" in problem["examples"][2]


@pytest.mark.parametrize(
    ("decode", "decoded", "found"),
    [
        ("0", "none of 101: names and labels were read", "no problems found, but 101 images were not decoded"),
        ("100", "100 of 101, spread over the set", "no problems found, but 1 image was not decoded"),
        ("all", "all 101", "no problems found"),
    ],
)
def test_what_was_not_decoded_is_said(tmp_path, decode, decoded, found, capsys):
    fill(tmp_path / "x", *(f"cat/{i}.png" for i in range(101)))
    assert main(["data", "check", str(tmp_path / "x"), "--decode", decode]) == 0
    shown, message = capsys.readouterr()
    assert f"decoded           {decoded}" in shown and shown.splitlines()[-1] == found
    assert ("decoding" in message) == (decode != "0")


@pytest.mark.parametrize("decode", ["-1", "x", "1.5", ""])
def test_a_wrong_number_to_decode_is_a_usage_error(tmp_path, decode, capsys):
    assert main(["data", "check", str(fill(tmp_path / "x", "1.png")), "--decode", decode]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_without_images_and_one_that_is_missing_are_usage_errors(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty")]) == 2
    assert main(["data", "check", str(tmp_path / "none")]) == 2
    assert "no images in" in capsys.readouterr().err


def test_a_folder_that_may_not_be_listed_is_a_usage_error(tmp_path, monkeypatch):
    """Root may list anything, so the refusal is the operating system's by name only."""
    fill(tmp_path / "x", "cat/1.png")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert main(["data", "check", str(tmp_path / "x")]) == 2
