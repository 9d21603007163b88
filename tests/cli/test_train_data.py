"""What trainings read: shards, known datasets, token caches; images that cannot be read, and folders that changed."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from small_datasets import halves, tar

from avarc_cli.cli import main
from avarc_cli.layers.rows import Rows
from avarc_cli.tokens import mixed, read
from avarc_cli.train import loop, token_batches

SHAPE = "--image-size 8 --patch-nums 1,2,4 --vocab 16 --channels 4 --width 32 --multipliers 1,1 --blocks 1".split()
TINY = ["--depth", "1", "--width", "64"]
STEPS = ["--batch-size", "8", "--steps", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """img/, the tokenizer vq.st, and the ten crops of img/ as its tokens in t.h5."""
    folder = tmp_path_factory.mktemp("data")
    images, vq = str(halves(folder / "img")), str(folder / "vq.st")
    assert main(["train", "tokenizer", images, *SHAPE, *STEPS, "--augment", "none", "--out", vq]) == 0
    assert main(["encode", images, "--tokenizer", vq, "--ten-crop", "--out", str(folder / "t.h5")]) == 0
    for name, data, tokenizer in (("other", f"{images}/left", vq), ("digits", images, "digits-vqvae")):
        words = ["--tokenizer", tokenizer, "--out", str(folder / f"{name}.h5")]
        assert main(["encode", data, *words]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def class_names(weights):
    with safe_open(weights, "pt") as file:
        return json.loads(file.metadata()["class_names"])


def train(name, data, out, *more):
    own = SHAPE if name == "tokenizer" else TINY
    return main(["train", name, str(data), *own, *STEPS, *map(str, more), "--out", str(out)])


def end_at(step, monkeypatch):
    """From now on, the training ends as by a kill after this many steps."""
    average, steps = loop.average, iter(range(step))

    def killed(*args):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        average(*args)

    monkeypatch.setattr(loop, "average", killed)


def test_a_generator_is_trained_on_shards_under_the_names_that_their_labels_have(folder, tmp_path, capsys):
    images = sorted((folder / "img").rglob("*.png"))
    for number in range(2):
        members = {}
        for path in images[number::2]:
            members |= {path.name: path.read_bytes(), f"{path.stem}.cls": path.parent.name.encode()}
        tar(tmp_path / "shards" / f"{number}.tar", members)
    assert train("tokenizer", tmp_path / "shards", tmp_path / "vq.st") == 0
    options = ["--tokenizer", tmp_path / "vq.st", "--hold-out", "0.1"]
    assert train("var", tmp_path / "shards", tmp_path / "var.st", *options) == 0
    assert class_names(tmp_path / "var.st") == ["left", "right"] and "2 tar files" in capsys.readouterr().err


def test_a_generator_of_a_known_dataset_gets_its_synsets(folder, tmp_path, capsys):
    images = sorted((folder / "img" / "left").iterdir())
    members = {}
    for number, path in enumerate(images):
        members |= {path.name: path.read_bytes(), f"{path.stem}.cls": str(number % 2).encode()}
    tar(tmp_path / "0.tar", members)
    options = ["--tokenizer", "vq.st", "--dataset", "imagenet-train"]
    assert train("var", tmp_path / "0.tar", tmp_path / "var.st", *options) == 0
    assert class_names(tmp_path / "var.st") == ["n01440764", "n01443537"]
    assert "indices of ImageNet-1k" in capsys.readouterr().err


def test_a_generator_is_trained_on_a_token_cache_and_goes_on_to_the_same_bits(tmp_path, monkeypatch, capsys):
    more = ["--save-every", "1", "--hold-out", "0.1", "--validate-every", "2"]
    assert train("var", "t.h5", tmp_path / "whole.st", *more) == 0
    err = capsys.readouterr().err
    assert "each epoch shows one of the 10 views of an image (ten-crop)" in err and "best on validation data" in err
    with monkeypatch.context() as patch:
        end_at(2, patch)
        assert train("var", "t.h5", tmp_path / "cut.st", *more) == 130
    assert (tmp_path / "cut.st.ckpt").exists()
    assert train("var", "t.h5", tmp_path / "cut.st", *more) == 0
    assert (tmp_path / "cut.st").read_bytes() == (tmp_path / "whole.st").read_bytes()
    assert class_names(tmp_path / "cut.st") == ["left", "right"]
    models = ["--model", str(tmp_path / "cut.st"), "--tokenizer", "vq.st"]
    assert main(["classify", "t.h5", *models, "--out", str(tmp_path / "run")]) == 0
    assert main(["train", "cca", "t.h5", *models, *STEPS, "--rank", "2", "--out", str(tmp_path / "lora")]) == 0


def test_caches_of_the_same_images_are_drawn_equally_often_then_their_views(folder, tmp_path, capsys):
    """As LlamaGen mixes its two sets of ten crops."""
    assert main(["encode", "img", "--tokenizer", "vq.st", "--flip", "--out", str(tmp_path / "flip.h5")]) == 0
    caches = [read(path) for path in ("t.h5", tmp_path / "flip.h5")]
    data = token_batches.CachedTokens(mixed.mixed(caches).take(np.arange(20)), seed=0)
    of_view = [np.arange(10)[:, None], np.arange(10, 12)[:, None]]  # which token each is made of
    images_to_see = np.arange(24)[:, None, None] < 20
    data._mapped = [np.where(images_to_see, np.broadcast_to(each, (24, len(each), 21)), 15) for each in of_view]
    batches = [data.batch(step, Rows(3, 16, 16))[0] for step in range(200)]
    counts = np.bincount(torch.cat(batches)[:, 0], minlength=16)
    assert counts[12:].sum() == 0 and abs(counts[:10].sum() - counts[10:12].sum()) < 200, "of 2600"
    assert (counts[:10] > 90).all() and (counts[10:12] > 500).all()
    first = token_batches.CachedTokens(caches[0], seed=0).batch(3, Rows.whole(16))[0]
    twice = token_batches.CachedTokens(mixed.mixed([caches[0]]), seed=0).batch(3, Rows.whole(16))[0]
    assert torch.equal(first, twice) and "and" not in token_batches.CachedTokens(caches[0], seed=0).subject["images"]
    more = [tmp_path / "flip.h5", *TINY, "--save-every", "1", "--hold-out", "0.1"]
    assert train("var", "t.h5", tmp_path / "mixed.st", *more) == 0
    assert "of a cache drawn at random: 10 (ten-crop), 2 (flip)" in " ".join(capsys.readouterr().err.split())
    assert train("var", "t.h5", tmp_path / "alone.st", *more[1:]) == 0
    assert (tmp_path / "mixed.st").read_bytes() != (tmp_path / "alone.st").read_bytes()


def test_the_tokenizer_of_a_cache_is_found_beside_it_or_named(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train("var", folder / "t.h5", "a.st", "--validation", folder / "t.h5") == 0, "beside it"
    shutil.copy(folder / "t.h5", "alone.h5")
    assert train("var", "alone.h5", "b.st") == 2
    err = capsys.readouterr().err
    assert "made by vq.st, which is neither here nor beside" in err and "--tokenizer FILE" in err
    assert train("var", "alone.h5", "b.st", "--tokenizer", folder / "vq.st") == 0
    assert train("var", "alone.h5", "c.st", "--tokenizer", "digits-vqvae") == 1
    assert "tokens of another tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["var", "img"], "no tokenizer is named"),
        (["tokenizer", "t.h5"], "'t.h5' is a token cache"),
        (["var", "img", "t.h5"], "images or token caches"),
        (["var", "t.h5", "other.h5"], "are not of the same images"),
        (["var", "t.h5", "digits.h5"], "hold tokens of different kinds"),
        (["var", "t.h5", "--dataset", "imagenet-val"], "no use for --dataset"),
        (["var", "t.h5", "--validation", "img"], "cannot validate on images"),
        (
            ["var", "img", "--tokenizer", "vq.st", "--hold-out", "0.5", "--validation", "t.h5"],
            "cannot be used together",
        ),
    ],
)
def test_what_does_not_go_together_is_one_message(tmp_path, capsys, words, says):
    assert main(["train", *words, "--out", str(tmp_path / "x")]) == 2
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err and not list(tmp_path.iterdir())


def test_a_flip_that_a_cache_cannot_do_is_said(tmp_path, capsys):
    assert train("var", "t.h5", tmp_path / "x.st", "--flip", "--steps", "1") == 0
    assert "--augment and --flip change nothing" in capsys.readouterr().err


def test_unreadable_images_are_skipped_and_reported_and_change_nothing_by_where_they_are(
    folder, tmp_path, monkeypatch, capsys
):
    bad = shutil.copytree(folder / "img", tmp_path / "img") / "left" / "bad.png"
    bad.write_bytes((folder / "img" / "left" / "01.png").read_bytes()[:60])
    words = ["--hold-out", "0.2", "--json"]
    assert train("tokenizer", tmp_path / "img", tmp_path / "memory.st", *words) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["unreadable"] == {"left/bad.png": "image file is truncated"}
    assert err.count("left out left/bad.png: image file is truncated") == 1
    assert "1 image could not be read, and others were shown instead" in err
    monkeypatch.setattr("avarc_cli.train.images.IN_MEMORY_BYTES", 0)
    assert train("tokenizer", tmp_path / "img", tmp_path / "disk.st", *words) == 3
    assert (tmp_path / "memory.st").read_bytes() == (tmp_path / "disk.st").read_bytes()


def test_a_class_without_a_readable_image_stops_a_generator_but_no_tokenizer(folder, tmp_path, capsys):
    images = shutil.copytree(folder / "img" / "left", tmp_path / "img" / "left").parent
    (images / "lost").mkdir()
    (images / "lost" / "only.png").write_bytes(b"nothing")
    assert train("tokenizer", images, tmp_path / "vq.st") == 3
    assert train("var", images, tmp_path / "var.st", "--tokenizer", "vq.st") == 1
    assert "no image of 'lost' is readable" in capsys.readouterr().err
    shutil.rmtree(images / "left")
    assert train("tokenizer", images, tmp_path / "x.st") == 1
    assert "is not readable" in capsys.readouterr().err and not (tmp_path / "x.st").exists()


def test_a_class_with_one_image_is_trained_on_and_never_held_out(folder, tmp_path):
    images = shutil.copytree(folder / "img" / "left", tmp_path / "img" / "left").parent
    (images / "lone").mkdir()
    shutil.copy(folder / "img" / "right" / "00.png", images / "lone")
    assert train("var", images, tmp_path / "var.st", "--tokenizer", "vq.st", "--hold-out", "0.5") == 0
    assert class_names(tmp_path / "var.st") == ["left", "lone"]


def test_what_changed_in_a_folder_since_the_training_stopped_is_named(folder, tmp_path, monkeypatch, capsys):
    images = shutil.copytree(folder / "img", tmp_path / "img")
    words = ["--save-every", "1", "--hold-out", "0.2"]
    with monkeypatch.context() as patch:
        end_at(2, patch)
        assert train("tokenizer", images, tmp_path / "x.st", *words) == 130
    os.rename(images / "left" / "01.png", images / "left" / "new.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / "right" / "02.png")
    capsys.readouterr()
    assert train("tokenizer", images, tmp_path / "x.st", *words) == 1
    err = capsys.readouterr().err
    assert "the training images have changed since" in err and "1 added (left/new.png)" in err
    assert "1 removed (left/01.png)" in err and "delete" in err
