from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from avarc_cli.data import open_images
from avarc_cli.errors import UsageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_sub_folders_are_classes_and_images_are_sorted_by_name(tmp_path):
    root = touch(tmp_path / "d", "dog/10.png", "dog/9.png", "cat/deep/down/1.JPEG", "cat/0.jpg", "empty/readme.txt")
    found = open_images([root])
    assert found.names == ("cat/0.jpg", "cat/deep/down/1.JPEG", "dog/10.png", "dog/9.png")
    assert found.class_names == ("cat", "dog")  # a folder without images is not a class
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.labels.dtype == np.int32
    assert found.paths[1] == root / "cat/deep/down/1.JPEG"
    assert found.source == root.as_posix()
    assert len(found) == 4


def test_a_flat_folder_is_unlabeled(tmp_path):
    found = open_images([touch(tmp_path, "b.png", "a.webp", "notes.md")])
    assert found.names == ("a.webp", "b.png")
    assert found.labels.tolist() == [-1, -1]
    assert found.class_names == ()


def test_images_beside_class_folders_are_unlabeled(tmp_path):
    found = open_images([touch(tmp_path, "z.png", "cat/1.png")])
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"cat/1.png": 0, "z.png": -1}


def test_hidden_and_other_files_are_skipped(tmp_path):
    touch(tmp_path, "cat/._1.png", ".cache/1.png", "cat/1.png", "cat/1.txt", "cat/noext")
    assert open_images([tmp_path]).names == ("cat/1.png",)


def test_links_are_followed_but_loops_are_not(tmp_path):
    touch(tmp_path, "real/1.png", "set/own/2.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "set" / "own" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "own" / "dead.png").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "set" / "own" / "pipe.png")
    found = open_images([tmp_path / "set"])
    assert found.names == ("linked/1.png", "own/2.png", "own/dead.png")  # the dead link is reported when it is read


def test_single_files_may_have_any_suffix(tmp_path):
    touch(tmp_path, "photo", "x.png")
    assert open_images([tmp_path / "photo"]).names == ("photo",)
    both = open_images([tmp_path / "x.png", tmp_path / "photo"])
    assert both.paths == (tmp_path / "x.png", tmp_path / "photo")
    assert both.names == ((tmp_path / "x.png").as_posix(), (tmp_path / "photo").as_posix())


def test_several_folders_share_classes_and_keep_distinct_names(tmp_path):
    touch(tmp_path, "a/cat/1.png", "b/cat/1.png", "b/ant/1.png")
    found = open_images([tmp_path / "b", tmp_path / "a"])
    assert found.class_names == ("ant", "cat")
    assert found.labels.tolist() == [0, 1, 1]
    assert len(set(found.names)) == 3
    assert found.source == f"{tmp_path.as_posix()}/b, {tmp_path.as_posix()}/a"


def test_a_list_contains_paths_relative_to_itself_and_classes(tmp_path):
    touch(tmp_path, "pics/b.png", "pics/a.png", "pics/with space.png")
    text = "\ufeffpics/b.png\tzebra\r\n\r\npics/a.png\n./pics/with space.png\tant \npics/none.png\tzebra\n"
    (tmp_path / "list.txt").write_text(text, newline="")
    found = open_images([tmp_path / "list.txt"])
    assert found.names == ("pics/b.png", "pics/a.png", "pics/with space.png", "pics/none.png")
    assert found.paths[0] == tmp_path / "pics/b.png"
    assert found.class_names == ("ant", "zebra")
    assert found.labels.tolist() == [1, -1, 0, 1]


def test_names_in_a_list_need_not_be_utf_8(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.png\n")
    assert os.fsencode(open_images([tmp_path / "list.txt"]).paths[0]).endswith(b"/caf\xe9.png")


def test_a_missing_or_empty_input_is_a_usage_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UsageError, match="does not exist"):
        open_images([tmp_path / "none"])
    with pytest.raises(UsageError):
        open_images([tmp_path / "nul\0"])
    for name in ("empty", "empty.txt"):
        with pytest.raises(UsageError, match="no images in"):
            open_images([tmp_path / name])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_without_permission_is_a_usage_error(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UsageError, match="permission denied"):
        open_images([tmp_path])


@pytest.fixture
def animals(tmp_path: Path):
    return open_images([touch(tmp_path, *(f"{name}/{i}.png" for name in ("Sea_lion", "ant", "cat") for i in range(4)))])


def test_select_keeps_the_first_of_each_class_in_order(animals):
    part = animals.select(None, 2, None)
    assert part.names == ("Sea_lion/0.png", "Sea_lion/1.png", "ant/0.png", "ant/1.png", "cat/0.png", "cat/1.png")
    assert part.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert animals.select(None, 2, 3).names == part.names[:3]
    assert len(animals.select(None, 100, 100)) == 12


def test_select_narrows_the_classes_and_renumbers_their_labels(animals):
    part = animals.select(["cat", "sea lion"], 1, None)
    assert part.class_names == ("Sea_lion", "cat")
    assert part.names == ("Sea_lion/0.png", "cat/0.png")
    assert part.labels.tolist() == [0, 1]


def test_select_sorts_by_name_within_a_class_of_an_unsorted_list(tmp_path):
    (tmp_path / "l.txt").write_text("b.png\tx\na.png\tx\nu.png\nc.png\ty\n")
    assert open_images([tmp_path / "l.txt"]).select(None, 1, None).names == ("a.png", "c.png")


def test_select_rejects_what_the_set_does_not_have(animals, tmp_path):
    with pytest.raises(UsageError, match="no images of catt") as error:
        animals.select(["catt", "ant"], None, None)
    assert "cat" in error.value.why
    with pytest.raises(UsageError, match="0 images per class"):
        animals.select(None, 0, None)
    with pytest.raises(UsageError, match="-1 images in all"):
        animals.select(None, None, -1)
    flat = open_images([touch(tmp_path / "flat", "1.png")])
    with pytest.raises(UsageError, match="images per class"):
        flat.select(None, 1, None)
    with pytest.raises(UsageError, match="no labels"):
        flat.select(["cat"], None, None)
    assert len(flat.select(None, None, 5)) == 1
