"""Which label belongs to which image of a tar, and what is said about the rest."""

from __future__ import annotations

import io
import itertools
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_datasets import picture, tar

from avarc_cli.data import open_images
from avarc_cli.errors import UsageError


def labels(path: Path) -> dict[str, str | None]:
    images = open_images([path])
    names = [images.class_names[k] if k >= 0 else None for k in images.labels]
    return dict(zip(images.names, names, strict=True))


def notes(path: Path) -> list[str]:
    return [note for note in open_images([path]).notes if note.startswith("not used: ")]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), stem=st.sampled_from(["{}", "cat.{}", "img.v1.{}", "set.v2/{}", "train/a.b/{}"]))
def test_labels_are_found_whatever_the_order_and_the_dots(tmp_path, data, stem):
    expected = {stem.format(i): name for i, name in enumerate("bacd")}
    members = [(f"{key}.png", picture()) for key in expected]
    members += [(f"{key}.cls", name.encode()) for key, name in expected.items()]
    path = tar(tmp_path / "x.tar", dict(data.draw(st.permutations(members))))
    assert labels(path) == {f"{key}.png": name for key, name in expected.items()}
    assert notes(path) == []


def test_a_label_serves_the_images_of_its_key(tmp_path):
    members = {"0.left.png": picture(), "0.right.png": picture(), "0.cls": b"a", "1.png": picture(), "1.cls": b"b"}
    assert labels(tar(tmp_path / "x.tar", members)) == {"0.left.png": "a", "0.right.png": "a", "1.png": "b"}


@pytest.mark.parametrize("main", ["0.png", "0.image.png", "0.rgb.jpg"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_masks_beside_an_image_are_not_images(tmp_path, main, order):
    members = [(main, picture()), ("0.mask.png", picture()), ("0.cls", b"a")]
    path = tar(tmp_path / "x.tar", dict(members[i] for i in order))
    assert labels(path) == {main: "a"}
    assert notes(path) == ["not used: pictures beside the image of their sample (1), such as 0.mask.png"]


def test_images_without_labels_of_their_own_stay(tmp_path):
    names = ["pets/cat.0.png", "pets/cat.1.png", "pets/dog.0.png"]
    assert labels(tar(tmp_path / "x.tar", {name: picture() for name in names})) == dict.fromkeys(names, "pets")


def test_of_several_members_with_one_name_the_last_counts(tmp_path):
    path = tar(tmp_path / "x.tar", {"0.png": picture(0), "0.cls": b"wrong", "1.png": picture(1), "1.cls": b"b"})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("0.cls")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"right"))
    assert labels(path) == {"0.png": "right", "1.png": "b"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"label": 7}', "7"),
        (b'{"label": 7.0}', "7"),
        (b'{"label": [7]}', "7"),
        (b'{"label": "7.0"}', "7"),
        (b'{"wnid": "n01443537", "label": 1}', "n01443537"),
    ],
)
def test_json_may_state_a_number_in_any_form(tmp_path, text, expected):
    assert labels(tar(tmp_path / "x.tar", {"0.png": picture(), "0.json": text})) == {"0.png": expected}


@pytest.mark.parametrize("text", [b"{}", b"[", b'{"label": true}', b'{"label": null}', b"[" * 100_000])
def test_json_without_a_class_is_named(tmp_path, text):
    path = tar(tmp_path / "x.tar", {"0.png": picture(), "0.json": text})
    fields = " (its fields: label)" if b"label" in text else ""
    assert notes(path) == [f"not used: .json files that state no class{fields} (1), such as 0.json"]


def test_what_is_not_used_is_counted_and_named(tmp_path):
    members = {"0.png": picture(), "0.id": b"1", "1.id": b"2", "2.cls": b"3", "README.txt": b"x", "Makefile": b""}
    assert notes(tar(tmp_path / "x.tar", members)) == [
        "not used: .id files (2), such as 0.id",
        "not used: files without a suffix (1), such as Makefile",
        "not used: labels without an image (1), such as 2.cls",
        "not used: .txt files (1), such as README.txt",
    ]


def test_links_lead_to_their_images_in_a_tar_of_the_folder_itself(tmp_path):
    (tmp_path / "img" / "a").mkdir(parents=True)
    (tmp_path / "img" / "b").mkdir()
    (tmp_path / "img" / "a" / "0.png").write_bytes(picture(0))
    (tmp_path / "img" / "b" / "1.png").hardlink_to(tmp_path / "img" / "a" / "0.png")
    (tmp_path / "img" / "b" / "2.png").symlink_to("../a/0.png")
    subprocess.run(["tar", "cf", "../x.tar", "."], cwd=tmp_path / "img", check=True)
    images = open_images([tmp_path / "x.tar"])
    assert len(images) == 3 and len(set(images.encoded.offset.tolist())) == 1


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["a", "a" * 120])
def test_links_lead_to_their_images(tmp_path, format, folder):
    if format == tarfile.USTAR_FORMAT and len(folder) > 100:
        return  # has no room for the link
    members = {f"{folder}/0.png": picture(0), f"{folder}/1.png": picture(1)}
    path = tar(tmp_path / "x.tar", members, format)
    with tarfile.open(path, "a", format=format) as archive:
        for name, kind, target in (
            ("b/2.png", tarfile.SYMTYPE, f"../{folder}/0.png"),
            ("b/3.png", tarfile.LNKTYPE, f"{folder}/1.png"),
            ("b/4.png", tarfile.SYMTYPE, "3.png"),
            ("b/5.png", tarfile.SYMTYPE, "5.png"),
            ("b/6.png", tarfile.SYMTYPE, "../../etc/6.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    images = open_images([path])
    assert images.names == (*members, "b/2.png", "b/3.png", "b/4.png")
    assert images.encoded.offset[[2, 3, 4]].tolist() == images.encoded.offset[[0, 1, 1]].tolist()
    assert notes(path) == ["not used: links that lead to no image in the tar (2), such as b/5.png"]


def test_data_after_the_end_mark_are_noted(tmp_path):
    one = tar(tmp_path / "a.tar", {"0.png": picture()})
    assert not any("end-of-archive" in note for note in open_images([one]).notes)
    joined = tmp_path / "joined.tar"
    joined.write_bytes(one.read_bytes() * 2)
    assert any("goes on after its end-of-archive mark" in note for note in open_images([joined]).notes)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [("train/n01443537/images", "n01443537"), ("data/train/7/images", "7"), ("pets/cat", "cat"), ("images", None)],
)
def test_classes_are_the_folders_around_images(tmp_path, folders, expected):
    assert labels(tar(tmp_path / "x.tar", {f"{folders}/0.png": picture()})) == {f"{folders}/0.png": expected}


@pytest.mark.parametrize(
    "kind", ["label", "class", "target", "index", "y", "cls.txt", "label.txt", "LABEL", "class_id", "synset"]
)
def test_files_with_one_class_may_have_other_suffixes(tmp_path, kind):
    members = {f"x/{i}.{kind}": label for i, label in enumerate((b"7\n", b"3.0", b"-1"))}
    path = tar(tmp_path / "x.tar", members | {f"x/{i}.png": picture(i) for i in range(3)})
    assert labels(path) == {"x/0.png": "7", "x/1.png": "3", "x/2.png": None}


def test_texts_that_are_all_numbers_are_classes(tmp_path):
    members = {"0.png": picture(), "0.txt": b"7\n", "1.png": picture(), "1.txt": b"3"}
    assert labels(tar(tmp_path / "x.tar", members)) == {"0.png": "7", "1.png": "3"}


def test_label_files_that_disagree_or_are_no_label_are_not_used(tmp_path):
    both = {"0.png": picture(), "0.label": b"7", "0.target": b"8", "1.png": picture(), "1.label": b"3", "1.index": b"4"}
    assert labels(tar(tmp_path / "x.tar", both)) == {"0.png": None, "1.png": "3"}
    path = tar(tmp_path / "y.tar", {"0.png": picture(), "0.label": b"0 1 2\n3 4 5"})
    assert labels(path) == {"0.png": None}
    assert "not used: .label files, which are not a class in one line (1), such as 0.label" in notes(path)


@pytest.mark.parametrize(
    ("kind", "text"), [("cls", b"-1"), ("json", b'{"label": -1}'), ("json", b'{"label": null}'), ("label", b"")]
)
def test_a_folder_is_no_class_where_label_files_say_that_it_is_unknown(tmp_path, kind, text):
    assert labels(tar(tmp_path / "x.tar", {"cat/0.png": picture(), f"cat/0.{kind}": text})) == {"cat/0.png": None}


def test_json_without_a_class_still_tells_which_pictures_are_one_sample(tmp_path):
    members = {"0.image.png": picture(0), "0.canny.png": picture(1), "0.json": b'{"caption": "x"}'}
    assert labels(tar(tmp_path / "x.tar", members)) == {"0.image.png": None}


def test_archives_in_a_tar_are_named(tmp_path):
    path = tar(tmp_path / "train.tar", {"n01440764.tar": b"x", "b.zip": b"y"})
    with pytest.raises(UsageError, match="no images") as error:
        open_images([path])
    assert ".tar files, which must be unpacked first (1), such as n01440764.tar" in error.value.why


@pytest.mark.parametrize(
    ("value", "expected"),
    [('{"Label Name": "ant"}', "ant"), ('{"category_id": [4]}', "4"), ('"ant"', "ant"), ("7.0", "7"), ("[1, 2]", None)],
)
def test_json_may_be_a_class_or_have_its_fields_in_any_spelling(tmp_path, value, expected):
    path = tar(tmp_path / "x.tar", {"0.png": picture(), "0.json": value.encode()})
    assert labels(path) == {"0.png": expected}
