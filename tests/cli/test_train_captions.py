"""`avarc train text-encoder` and `train llamagen-t2i`: what is written, how it is used, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from small_datasets import halves

from avarc_cli.cli import main
from avarc_cli.text import encoders

VQ = ["--image-size", "8", "--vocab", "16", "--channels", "4", "--width", "32", "--multipliers", "1,1", "--blocks", "1"]
TEXT = ["--positions", "8", "--pieces", "64", "--width", "16", "--batch-size", "8", "--steps", "40"]
BRIEF = ["--augment", "none", "--batch-size", "8", "--steps", "3", "--depth", "1", "--width", "16", "--heads", "1"]
CAPTIONS = {"left": ["the left half", "white on the left"], "right": ["the right half", "white on the right"]}


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Images in img/, captions of their classes, a tokenizer, a text encoder and a generator, hardly trained."""
    folder = tmp_path_factory.mktemp("captions")
    halves(folder / "img")
    here = SimpleNamespace(folder=folder, images=folder / "img", captions=folder / "captions.json")
    here.captions.write_text(json.dumps(CAPTIONS))
    here.vq, here.text, here.t2i = folder / "vq.safetensors", folder / "text", folder / "t2i.safetensors"
    brief = ["--augment", "none", "--batch-size", "8", "--steps", "3"]
    assert avarc("-q", "train", "vq", here.images, *VQ, *brief, "--out", here.vq) == 0
    assert avarc("-q", "train", "text-encoder", here.captions, *TEXT, "--out", here.text) == 0
    here.reads = ["--captions", here.captions, "--text-encoder", here.text, "--tokenizer", here.vq]
    assert avarc("-q", "train", "llamagen-t2i", here.images, *here.reads, *BRIEF, "--out", here.t2i) == 0
    return here


def encoded(text, captions):
    return encoders.encode_once(encoders.find(text), captions, torch.device("cpu"))


def test_the_same_training_writes_the_same_text_encoder(setting, tmp_path):
    again = tmp_path / "again"
    assert avarc("-q", "train", "text-encoder", setting.captions, *TEXT, "--out", again) == 0
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (setting.text / name).read_bytes()


def test_captions_of_a_name_become_alike(setting):
    texts = [*CAPTIONS["left"], *CAPTIONS["right"]]
    features = encoded(setting.text, texts).features
    mean_RD = features.sequence_RTD.sum(1) / features.length_R[:, None]
    distance = torch.cdist(mean_RD, mean_RD)
    assert distance[0, 1] < distance[0, 2:].min() and distance[2, 3] < distance[:2, 2:].min()


def test_features_of_a_caption_do_not_depend_on_the_others(setting, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    alone = encoded(setting.text, ["the left half"]).features
    both = encoded(setting.text, ["the left half", "white is on the right, not on the left"]).features
    length = int(alone.length_R[0])
    assert length == 4 and int(both.length_R[0]) == 4  # three words and the end
    assert torch.allclose(alone.sequence_RTD[0, :length], both.sequence_RTD[0, :length], atol=1e-6)
    assert not both.sequence_RTD[0, length:].any()
    assert int(both.empty.length_R[0]) == 1


def test_a_long_caption_is_cut(setting):
    found = encoded(setting.text, ["one two three four five six seven", "one two three four five six seven eight"])
    assert found.cut == (1,)
    assert torch.allclose(found.features.sequence_RTD[0], found.features.sequence_RTD[1], atol=1e-6)


def test_the_generator_says_what_it_was_trained_with(setting):
    with safe_open(setting.t2i, "pt") as file:
        metadata = file.metadata()
    assert metadata["family"] == "llamagen-t2i" and metadata["text_encoder"] == "text"
    assert metadata["n_head"] == "1" and "class_names" not in metadata


def test_the_trained_files_classify(setting, tmp_path):
    one = tmp_path / "captions.csv"
    one.write_text("name,caption\nleft,the left half\nright,white on the right\n")
    words = ["--model", setting.t2i, "--tokenizer", setting.vq, "--captions", one, "--text-encoder", setting.text]
    assert avarc("-q", "classify", setting.images, *words, "--score", "pmi", "--out", tmp_path / "run") == 0
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["prediction_id"] for line in lines} <= {"left", "right"}
    assert "accuracy" in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_a_text_encoder_of_another_kind_of_file_is_refused(setting, tmp_path, capsys):
    damaged = tmp_path / "text"
    damaged.mkdir()
    (damaged / "config.json").write_bytes((setting.text / "config.json").read_bytes())
    (damaged / "model.safetensors").write_bytes((setting.text / "model.safetensors").read_bytes()[:-50])
    words = ["--captions", setting.captions, "--text-encoder", damaged, "--tokenizer", setting.vq]
    assert avarc("train", "llamagen-t2i", setting.images, *words, *BRIEF, "--out", tmp_path / "x.safetensors") == 1
    assert "holds no small text encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("captions", "options", "said"),
    [
        ({"left": ["the left half"]}, [], "there is only one"),
        (CAPTIONS, ["--width", "20"], "it is a multiple of 16"),
        (CAPTIONS, ["--positions", "3"], "write --positions 5"),
    ],
)
def test_wrong_text_encoders_are_refused(tmp_path, capsys, captions, options, said):
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(captions))
    assert avarc("train", "text-encoder", file, *TEXT, *options, "--out", tmp_path / "text") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "text").exists()


def test_a_class_without_a_caption_is_named(setting, tmp_path, capsys):
    some = tmp_path / "some.json"
    some.write_text(json.dumps({"left": "the left half", "up": "the upper half"}))
    words = ["--captions", some, "--text-encoder", setting.text, "--tokenizer", setting.vq]
    assert avarc("train", "llamagen-t2i", setting.images, *words, *BRIEF, "--out", tmp_path / "x.safetensors") == 2
    err = capsys.readouterr().err
    assert "classes without a caption: right" in err
    assert not (tmp_path / "x.safetensors").exists()
