"""--subset and --per-class of a dataset that is not complete: what exists is used, and what is missing is said."""

from __future__ import annotations

import json

import pytest
from small_datasets import fill, picture, tar

from avarc_cli.cli import main
from avarc_cli.data import datasets, open_images
from avarc_cli.data.labels import imagenet1k, subset

IDS = imagenet1k().ids


def names_in(cache, capsys):
    capsys.readouterr()
    assert main(["--json", "cache", "head", str(cache), "--rows", "1000"]) == 0
    return [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]]


@pytest.mark.parametrize("layout", ["folders", "numbers", "tar"])
def test_the_classes_that_exist_are_used_and_the_others_counted(layout, tmp_path, capsys):
    wanted = [IDS.index(name) for name in subset("imagenet100")][:3]
    others = [next(i for i in range(1000) if IDS[i] not in subset("imagenet100"))]
    if layout == "folders":
        data = fill(tmp_path / "val", *(f"{IDS[i]}/{n}.JPEG" for i in wanted + others for n in range(2)))
    elif layout == "numbers":
        folder = tmp_path / "imagenetv2-matched-frequency-format-val"
        data = fill(folder, *(f"{i}/{n}.jpeg" for i in wanted + others for n in range(2)))
    else:
        keys = {f"{i:04d}{n}": i for i in wanted + others for n in range(2)}
        content = {f"{key}.jpg": picture(i) for key, i in keys.items()}
        content |= {f"{key}.cls": b"%d" % i for key, i in keys.items()}
        data = tar(tmp_path / "val" / "val-0.tar", dict(sorted(content.items())))
    out = tmp_path / "x.h5"
    assert main(["encode", str(data), "--subset", "imagenet100", "--out", str(out)]) == 0
    message = capsys.readouterr().err
    assert "there are no images of 97 of the 100 classes of the subset: " in message and "and 92 more" in message
    assert len(names_in(out, capsys)) == 6


def test_a_complete_subset_is_not_reported(tmp_path, capsys):
    data = fill(tmp_path / "val", *(f"{name}/0.JPEG" for name in IDS[:4]))
    (tmp_path / "two.txt").write_text(f"{IDS[0]}\n{IDS[2]}\n")
    command = ["encode", str(data), "--subset", str(tmp_path / "two.txt"), "--per-class", "1"]
    assert main([*command, "--out", str(tmp_path / "x.h5")]) == 0
    assert "there are" not in capsys.readouterr().err


def test_a_subset_without_any_image_and_a_misspelled_class_are_errors(tmp_path, capsys):
    data = fill(tmp_path / "val", f"{IDS[0]}/0.JPEG", f"{IDS[1]}/0.JPEG")
    for listed in (f"{IDS[5]}\n{IDS[6]}\n", "tench\ngoldfihs\n"):
        (tmp_path / "l.txt").write_text(listed)
        command = ["encode", str(data), "--subset", str(tmp_path / "l.txt"), "--out", str(tmp_path / "x.h5")]
        assert main(command) == 2
        assert "has no images of" in capsys.readouterr().err


def test_a_class_with_fewer_images_than_asked_for_is_reported(tmp_path, capsys):
    names = [f"{name}/{i}.JPEG" for name in IDS[:3] for i in range(3)]
    data = fill(tmp_path / "val", *names[:-1])
    assert main(["encode", str(data), "--per-class", "3", "--out", str(tmp_path / "x.h5")]) == 0
    message = capsys.readouterr().err
    assert "there are fewer than 3 images of 1 class: great white shark" in message
    assert len(names_in(tmp_path / "x.h5", capsys)) == 8


def test_missing_files_do_not_change_which_of_the_others_are_chosen(tmp_path):
    known = datasets()["imagenet-r"]
    names = [f"{known.ids[k]}/{style}_{i}.jpg" for k in range(4) for style in ("art", "toy") for i in range(4)]
    complete = open_images([fill(tmp_path / "a" / "imagenet-r", *names)]).select(subset("imagenet-r"), 5, None)
    left = [name for name in names if not name.startswith(known.ids[1])]
    part = open_images([fill(tmp_path / "b" / "imagenet-r", *left)]).select(subset("imagenet-r"), 5, None)
    assert part.names == tuple(name for name in complete.names if not name.startswith(known.ids[1]))
    assert part.notes[-1].startswith("there are no images of 197 of the 200 classes")
