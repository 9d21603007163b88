"""A file is replaced only on request, and only by one of its own kind."""

from __future__ import annotations

import os

import pytest

from avarc_cli import outputs
from avarc_cli.errors import UsageError
from avarc_cli.outputs import check_new_folder, check_output, reserved
from avarc_cli.work.locks import lock_file

KINDS = [
    (outputs.CACHE, "t.h5", b"\x89HDF\r\n\x1a\n..."),
    (outputs.HTML, "a.html", b"<!DOCTYPE html><html>"),
    (outputs.JSON, "plan.json", b'{"format": 1}'),
    (outputs.NPZ, "a.npz", b"PK\x03\x04"),
    (outputs.PARQUET, "a.parquet", b"PAR1"),
    (outputs.PNG, "a.png", b"\x89PNG\r\n\x1a\n..."),
    (outputs.PREDICTIONS_CSV, "p.csv", b"index,path,prediction,prediction_id"),
    (outputs.PREDICTIONS_JSON, "p.json", b'{\n  "out": null,'),
    (outputs.SVG, "a.svg", b"<?xml version='1.0'?>"),
    (outputs.WEIGHTS, "v.st", b"\x10\0\0\0\0\0\0\0{}"),
]


@pytest.mark.parametrize(("kind", "name", "content"), KINDS)
def test_an_existing_file_is_replaced_on_request_by_its_own_kind(tmp_path, kind, name, content):
    path = tmp_path / name
    check_output(path, kind, overwrite=False)
    for there in (content, b""):
        path.write_bytes(there)
        with pytest.raises(UsageError, match=f"{name}' exists"):
            check_output(path, kind, overwrite=False)
        check_output(path, kind, overwrite=True)
    path.write_bytes(b"my thesis")
    with pytest.raises(UsageError, match=f"it is not {kind.name}"):
        check_output(path, kind, overwrite=True)
    assert path.read_bytes() == b"my thesis"


def test_what_a_command_reads_is_never_replaced_under_any_name(tmp_path):
    image, other = tmp_path / "a.png", tmp_path / "b.png"
    image.write_bytes(KINDS[5][2])
    os.link(image, other)
    with pytest.raises(UsageError, match="this command reads it"):
        check_output(other, outputs.PNG, overwrite=True, inputs=[tmp_path / "none.png", image])


def test_links_devices_and_folders_are_refused(tmp_path):
    target, link, dangling = tmp_path / "target.png", tmp_path / "link.png", tmp_path / "dangling.png"
    target.write_bytes(KINDS[5][2])
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, why in {
        "link.png": "it is a link",
        "dangling.png": "it is a link",
        "folder.png": "it is a folder",
        "pipe.png": "a device or a pipe",
        "none/a.png": "is not a folder",
        "a.jpg": "no format '.jpg'",
    }.items():
        with pytest.raises(UsageError, match=why):
            check_output(tmp_path / name, outputs.PNG, overwrite=True)


def test_a_new_folder_replaces_only_an_empty_one(tmp_path):
    check_new_folder(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_new_folder(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "file").touch()
    for name in ("full", "link", "file"):
        with pytest.raises(UsageError, match=f"{name}' exists"):
            check_new_folder(tmp_path / name)
    with pytest.raises(UsageError, match="is not a folder"):
        check_new_folder(tmp_path / "none" / "new")


def test_what_a_killed_writer_left_is_deleted_and_what_looks_like_it_is_kept(tmp_path):
    path = tmp_path / "a.png"
    (tmp_path / "a.png.0123abcd.tmp").touch()
    (tmp_path / "a.png.tmp").write_text("mine")
    with reserved(path, outputs.PNG, overwrite=False):
        assert lock_file(path).exists()
    assert [file.name for file in tmp_path.iterdir()] == ["a.png.tmp"]
    with reserved(None, outputs.PNG, overwrite=False):
        pass


def test_a_lock_that_outlived_its_process_is_deleted_also_when_the_file_is_complete(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(KINDS[5][2])
    lock_file(path).touch()
    (tmp_path / "a.png.0123abcd.tmp").touch()
    with pytest.raises(UsageError, match="exists"):
        check_output(path, outputs.PNG, overwrite=False)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
