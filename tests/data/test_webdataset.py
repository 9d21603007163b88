"""Tar files, read in place: plain ones, WebDataset shards, and corrupt ones."""

from __future__ import annotations

import bz2
import gzip
import json
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from small_datasets import fill, picture, tar

from avarc_cli.data import Preprocess, datasets, imagenet1k, open_images
from avarc_cli.errors import UnreadableImage, UsageError

IDS = imagenet1k().ids
FIT = Preprocess("fit", 8)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def pixels(data: bytes, tmp_path: Path) -> np.ndarray:
    path = tmp_path / "reference"
    path.write_bytes(data)
    return FIT(path)


def classes(images) -> list[str | None]:
    return [images.class_names[k] if k >= 0 else None for k in images.labels]


def shards(root: Path, per_shard: int = 3, count: int = 2, label=lambda i: {"cls": str(i % 2 * 388).encode()}) -> Path:
    """Shards of samples; `label` gives the label files of sample i by suffix."""
    for s in range(count):
        members = {}
        for i in range(s * per_shard, (s + 1) * per_shard):
            members |= {f"{i:06d}.{suffix}": data for suffix, data in label(i).items()}
            members[f"{i:06d}.{('jpg', 'png', 'webp')[i % 3]}"] = picture(i, ("JPEG", "PNG", "WEBP")[i % 3])
        tar(root / f"shard-{s:03d}.tar", members)
    return root


def test_a_folder_of_shards_is_read_in_place_and_in_order(tmp_path):
    root = shards(tmp_path / "wds")
    images = open_images([root])
    assert images.names[:3] == ("shard-000.tar/000000.jpg", "shard-000.tar/000001.png", "shard-000.tar/000002.webp")
    assert classes(images) == ["0", "388", "0", "388", "0", "388"]
    for i in (5, 0, 3):  # random access
        data = picture(i, ("JPEG", "PNG", "WEBP")[i % 3])
        assert np.array_equal(images.load(i, FIT), pixels(data, tmp_path))
    assert sorted(p.name for p in root.iterdir()) == ["shard-000.tar", "shard-001.tar"]  # nothing is unpacked


def test_an_image_set_can_be_pickled(tmp_path):
    images = pickle.loads(pickle.dumps(open_images([shards(tmp_path / "wds")]).select(None, 1, None)))
    assert images.names == ("shard-000.tar/000000.jpg", "shard-000.tar/000001.png")
    assert np.array_equal(images.load(1, FIT), pixels(picture(1), tmp_path))


def test_single_shards_can_be_inputs(tmp_path):
    root = shards(tmp_path / "wds")
    one = open_images([root / "shard-001.tar"])
    assert one.names[0] == "000003.jpg"
    both = open_images([root / "shard-001.tar", root / "shard-000.tar"])
    assert both.names[0].endswith("wds/shard-001.tar/000003.jpg") and len(set(both.names)) == 6


def test_numbers_are_imagenet_indices_in_imagenet_datasets(tmp_path):
    root = shards(tmp_path / "wds")
    images = open_images([root], "imagenet-val")
    assert (images.dataset, images.class_names) == ("imagenet-val", (IDS[0], IDS[388]))
    assert any("taken for indices of ImageNet-1k" in note for note in images.notes)
    assert any("taken for class numbers" in note for note in open_images([root]).notes)
    named = shards(tmp_path / "imagenet" / "val")
    assert open_images([named]).class_names == (IDS[0], IDS[388])


def test_numbers_of_imagenet_r_are_indices_or_positions_among_its_200_classes(tmp_path):
    known = datasets()["imagenet-r"]
    by_index = shards(tmp_path / "a", label=lambda i: {"cls": str((1, 388)[i % 2]).encode()})
    assert open_images([by_index], "imagenet-r").class_names == (IDS[1], IDS[388])
    by_position = shards(tmp_path / "b", label=lambda i: {"cls": str((0, 199)[i % 2]).encode()})
    assert open_images([by_position], "imagenet-r").class_names == (known.ids[0], known.ids[199])
    wrong = shards(tmp_path / "c", label=lambda i: {"cls": b"700"})
    with pytest.raises(UsageError, match="is not ImageNet-R"):
        open_images([wrong], "imagenet-r")
    with pytest.raises(UsageError, match="no dataset 'imagenet-rr'"):
        open_images([wrong], "imagenet-rr")


def test_a_class_list_beside_the_shards_names_the_numbers(tmp_path):
    root = shards(tmp_path / "set" / "test", label=lambda i: {"cls": str(i % 2).encode()})
    (tmp_path / "set" / "classnames.txt").write_text("ant\nbee\n")
    assert classes(open_images([root])) == ["ant", "bee", "ant", "bee", "ant", "bee"]
    (tmp_path / "set" / "classnames.txt").write_text("ant\n")
    with pytest.raises(UsageError, match="does not name every class"):
        open_images([root])


def test_a_class_list_in_imagenets_order_becomes_synsets(tmp_path):
    root = shards(tmp_path / "wds", label=lambda i: {"cls": str((134, 517)[i % 2]).encode()})
    (root / "classnames.txt").write_text("\n".join(imagenet1k().names))
    assert open_images([root]).class_names == ("n02012849", "n03126707")


def test_repeated_class_names_get_their_number(tmp_path):
    root = shards(tmp_path / "wds", label=lambda i: {"cls": str(i % 2).encode()})
    (root / "classnames.txt").write_text("crane\ncrane\n")
    images = open_images([root])
    assert images.class_names == ("crane (0)", "crane (1)")
    assert any("several classes have the same name (crane)" in note for note in images.notes)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (lambda i: {"cls": (b"ant", b"bee")[i % 2]}, ["ant", "bee"]),
        (lambda i: {"txt": (b"ant", b"bee\n")[i % 2]}, ["ant", "bee"]),
        (
            lambda i: {"json": json.dumps({"label": i % 2, "class_name": ("ant", "bee")[i % 2]}).encode()},
            ["ant", "bee"],
        ),
        (lambda i: {"json": json.dumps({"label": i % 2}).encode()}, ["0", "1"]),
        (lambda i: {"json": b"[", "cls": b"3"}, ["3"]),
        (lambda i: {"txt": b"caption number %d" % i}, []),
        (lambda i: {}, []),
    ],
)
def test_labels_may_be_names_json_or_repeated_texts_but_not_captions(tmp_path, label, expected):
    assert list(open_images([shards(tmp_path / "wds", label=label)]).class_names) == expected


def test_keys_may_contain_dots(tmp_path):
    """ImageNet-A's file names begin with a probability, so the first dot does not end a key."""
    names = ["n01443537/0.01_goldfish.jpg", "n01443537/0.02_goldfish.jpg"]
    assert open_images([tar(tmp_path / "x.tar", {name: picture() for name in names})]).names == tuple(names)


def test_a_tar_of_class_folders_needs_no_unpacking(tmp_path):
    members = {"imagenet-r/n01443537/art_0.jpg": picture(0), "imagenet-r/n01484850/art_1.jpg": picture(1)}
    path = tar(tmp_path / "imagenet-r.tar", members | {"imagenet-r/README.txt": b"hello"})
    images = open_images([path])
    assert images.dataset == "imagenet-r" and classes(images) == ["n01443537", "n01484850"]


@pytest.mark.parametrize("names", [["n01440764", "n01443537"], ["cat", "dog"], ["boeing 747", "cessna 172"]])
def test_tars_that_are_called_after_their_class_label_their_images(tmp_path, names):
    for name in names:
        tar(tmp_path / "set" / f"{name}.tar", {"./1.jpg": picture(0), "./2.jpg": picture(1)})
    images = open_images([tmp_path / "set"])
    assert classes(images) == [names[0]] * 2 + [names[1]] * 2
    assert "classes from the names of the tar files" in images.notes
    assert classes(open_images([tmp_path / "set" / f"{name}.tar" for name in reversed(names)]))[0] == names[1]


def test_the_archive_of_imagenets_training_images_is_read_as_it_is_unpacked_once(tmp_path):
    for synset in ("n01440764", "n01443537"):
        tar(tmp_path / "train" / f"{synset}.tar", {f"{synset}_{i}.JPEG": picture(i) for i in (1, 2)})
    images = open_images([tmp_path / "train"])
    assert images.dataset == "imagenet-train" and classes(images) == ["n01440764"] * 2 + ["n01443537"] * 2


@pytest.mark.parametrize(
    "names", [["shard-000", "shard-001"], ["0", "1"], ["cat-0", "cat-1", "dog-0"], ["data", "images"], ["cat"]]
)
def test_other_names_of_tars_are_no_classes(tmp_path, names):
    for name in names:
        tar(tmp_path / f"{name}.tar", {"1.jpg": picture(0)})
    images = open_images([tmp_path])
    assert set(classes(images)) == {None}
    assert "without labels" in images.layout
    assert len(names) == 1 or any("not taken for classes" in note for note in images.notes)


def test_labels_in_a_tar_count_more_than_its_name(tmp_path):
    for name in ("cat", "dog"):
        tar(tmp_path / f"{name}.tar", {"1.jpg": picture(0), "1.cls": b"7"})
    assert set(classes(open_images([tmp_path]))) == {"7"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ILSVRC2012_val_00000001_n01751748.JPEG", "n01751748"),
        ("train/n01440764_10026_n01440764.JPEG", "n01440764"),
        ("./n01440764_10026.JPEG", "n01440764"),
        ("tench/n01440764_10026.JPEG", "tench"),
        ("tench/ILSVRC2012_val_00000001.JPEG", "tench"),
        ("train/photo.jpg", None),
    ],
)
def test_synsets_in_the_names_of_images_count_unless_a_folder_is_a_class(tmp_path, name, expected):
    assert classes(open_images([tar(tmp_path / "x.tar", {name: picture()})])) == [expected]


def test_several_splits_in_one_folder_need_a_choice(tmp_path):
    for split in ("train", "validation"):
        tar(tmp_path / f"imagenet1k-{split}-00.tar", {"0.jpg": picture(0), "0.cls": b"7"})
    with pytest.raises(UsageError, match="several splits"):
        open_images([tmp_path])
    images = open_images([tmp_path], "imagenet-val")
    assert images.names == ("0.jpg",) and images.class_names == (IDS[7],)


def test_a_truncated_tar_is_noted_and_has_one_unreadable_image(tmp_path):
    root = shards(tmp_path / "wds", count=1)
    path = root / "shard-000.tar"
    images = open_images([root])
    offset, size = int(images.encoded.offset[2]), int(images.encoded.size[2])
    path.write_bytes(path.read_bytes()[: offset + size // 2])
    truncated = open_images([root])
    assert len(truncated) == 3 and any("has no end-of-archive mark" in note for note in truncated.notes)
    truncated.load(1, FIT)
    with pytest.raises(UnreadableImage, match="the tar ends within it"):
        truncated.load(2, FIT)


def test_invalid_images_in_a_shard_are_unreadable(tmp_path):
    path = tar(
        tmp_path / "x.tar", {"a.jpg": picture(0, "JPEG")[:200], "b.png": b"text", "c.png": b"", "d.png": picture()}
    )
    images = open_images([path])
    for i in range(3):
        with pytest.raises(UnreadableImage) as error:
            images.load(i, FIT)
        assert str(path) not in error.value.why
    assert images.load(3, FIT).shape == (8, 8, 3)


@pytest.mark.parametrize("damage", [b"\xff" * 512, b"not a tar at all, but long enough " * 40])
def test_a_corrupt_tar_is_a_usage_error_with_the_position(tmp_path, damage):
    root = shards(tmp_path / "wds", count=1)
    path = root / "shard-000.tar"
    data = bytearray(path.read_bytes())
    data[1024 : 1024 + len(damage)] = damage
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is not a readable tar") as error:
        open_images([root])
    assert "byte 1,024" in error.value.why


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.tar", gzip.compress(b"x" * 600, mtime=0)),
        ("x.tar", bz2.compress(b"x" * 600)),
        ("x.tar", b"PK\x03\x04 a zip under another name"),
        *((name, b"whatever") for name in ("x.tar.gz", "x.tgz", "x.TAR.ZST", "x.zip", "photos.7z", "x.tar.xz")),
    ],
)
def test_a_compressed_archive_is_refused_in_the_same_words_wherever_it_is(tmp_path, name, data):
    root = fill(tmp_path, "photos/1.png") / "set/inside"
    root.mkdir(parents=True)
    (root / name).write_bytes(data)
    for inputs in ([root / name], [tmp_path / "set"], [tmp_path / "photos", root / name]):
        with pytest.raises(UsageError, match=re.escape(f"{name}' is compressed")) as error:
            open_images(inputs)
        assert "read in place" in error.value.why and "unpack it" in error.value.fix


def test_a_compressed_shard_among_others_is_refused_unless_it_is_unpacked(tmp_path):
    root = shards(tmp_path / "wds")
    (root / "shard-001.tar.gz").write_bytes(b"x")
    (root / "readme.txt.gz").write_bytes(b"x")
    images = open_images([root])
    assert len(images) == 6 and "files that are not used: 2 .gz" in images.notes
    (root / "shard-002.tar.gz").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"shard-002.tar.gz' is compressed"):
        open_images([root])


def test_a_tar_whose_first_name_looks_like_a_magic_number_is_read(tmp_path):
    assert len(open_images([tar(tmp_path / "x.tar", {"BZh1.png": picture(), "PK.png": picture()})])) == 2


def test_a_tar_without_images_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no images in"):
        open_images([tar(tmp_path / "x.tar", {"readme.txt": b"hello"})])
    (tmp_path / "empty.tar").touch()
    with pytest.raises(UsageError, match="no images in"):
        open_images([tmp_path / "empty.tar"])
