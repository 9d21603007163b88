"""`avarc train tatitok`, `titok --vae` and `maskgen`: what is written, how it is used, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_datasets import halves

from avarc_cli.cli import main

TEXT = ["--positions", "8", "--pieces", "64", "--width", "16", "--batch-size", "8", "--steps", "20"]
BRIEF = ["--augment", "none", "--batch-size", "8", "--steps", "3"]
SMALL = ["--image-size", "8", "--patch", "4", "--tokens", "6", "--channels", "4", "--width", "64", "--depth", "1"]
SHAPE = ["--depth", "2", "--width", "16", "--heads", "2"]
CAPTIONS = {"left": ["the left half", "white on the left"], "right": "white on the right"}


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Images in img/, captions of their classes with their scores, a text encoder, and two tokenizers."""
    folder = tmp_path_factory.mktemp("maskgen")
    here = SimpleNamespace(folder=folder, images=halves(folder / "img"), captions=folder / "captions.json")
    here.captions.write_text(json.dumps(CAPTIONS))
    names = sorted(path.relative_to(here.images).as_posix() for path in here.images.rglob("*.png"))
    here.scores = folder / "scores.csv"
    here.scores.write_text("image,score\n" + "".join(f"{name},{i % 5 + 2}\n" for i, name in enumerate(names)))
    here.text = folder / "text"
    assert avarc("-q", "train", "text-encoder", here.captions, *TEXT, "--out", here.text) == 0
    here.reads = ["--captions", here.captions, "--text-encoder", here.text]
    here.vq, here.vae = folder / "vq.safetensors", folder / "vae.safetensors"
    words = ["-q", "train", "tatitok", here.images, *here.reads, *SMALL, *BRIEF]
    assert avarc(*words, "--vocab", "12", "--out", here.vq, "--hold-out", "0.2") == 0
    pictures = ["--log-to", folder / "log", "--pictures-every", "2"]
    assert avarc(*words, "--vae", "--out", here.vae, "--hold-out", "0.2", *pictures) == 0
    return here


@pytest.fixture(scope="module", params=["vq", "vae"])
def trained(request, setting):
    """A MaskGen of codes, and one of continuous tokens."""
    reader = getattr(setting, request.param)
    out = setting.folder / f"maskgen-{request.param}.safetensors"
    words = [*setting.reads, "--tokenizer", reader, *SHAPE, *BRIEF, "--hold-out", "0.2"]
    assert avarc("-q", "train", "maskgen", setting.images, *words, "--out", out) == 0
    return SimpleNamespace(kind=request.param, reader=reader, file=out)


def test_tokenizers_say_what_tensors_do_not(setting):
    assert metadata(setting.vq) == {
        "family": "tatitok",
        "preprocess": "fit",
        "text_encoder": "text",
        "use_l2_norm": "false",
    }
    assert metadata(setting.vae) == {"family": "tatitok", "preprocess": "fit", "text_encoder": "text"}
    assert list((setting.folder / "log" / "pictures").glob("*2.png"))
    assert not list(setting.folder.glob("*.ckpt"))


def test_a_tatitok_decodes_with_a_caption_of_its_own_encoder(setting, tmp_path):
    cache = tmp_path / "t.h5"
    assert avarc("-q", "encode", setting.images, "--tokenizer", setting.vae, "--limit", "2", "--out", cache) == 0
    words = ["-q", "cache", "head", cache, "--tokenizer", setting.vae, "--text-encoder", setting.text]
    pictures = []
    for number, caption in enumerate(("white on the left", "")):
        assert avarc(*words, "--caption", caption, "--picture", tmp_path / f"{number}.png") == 0
        pictures.append((tmp_path / f"{number}.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_the_trained_files_classify_and_draw(setting, trained, tmp_path):
    models = ["--model", trained.file, "--tokenizer", trained.reader, "--text-encoder", setting.text]
    one = tmp_path / "captions.csv"
    one.write_text("name,caption\nleft,the left half\nright,white on the right\n")
    words = ["--captions", one, "--steps", "2", "--score", "pmi", "--out", tmp_path / "run"]
    assert avarc("-q", "classify", setting.images, *models, *words) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["images"] == 24
    drawn = tmp_path / "s.png"
    if trained.kind == "vq":
        assert avarc("-q", "sample", "the left half", *models, "--guidance", "1", "--count", "1", "--out", drawn) == 0


def test_a_generator_says_what_tensors_do_not(trained):
    said = metadata(trained.file)
    more = {"codebook_size"} if trained.kind == "vq" else {"scale_factor"}
    assert (
        said.keys()
        == {
            "family",
            "decoder_num_heads",
            "text_context_length",
            "text_encoder",
            "tokenizer_sha256",
        }
        | more
    )
    assert said["family"] == ("maskgen" if trained.kind == "vq" else "maskgen-kl")
    assert (said["decoder_num_heads"], said["text_context_length"], said["text_encoder"]) == ("2", "8", "text")


def test_a_second_stage_begins_with_the_first_and_is_given_scores(setting, trained, tmp_path, capsys):
    first, out = load_file(trained.file), tmp_path / "second.safetensors"
    words = [*setting.reads, "--tokenizer", trained.reader, "--start-from", trained.file, *BRIEF, "--lr", "1e-9"]
    words = ["train", "maskgen", setting.images, *words, "--out", out]
    assert avarc(*words) == 0
    assert all(torch.allclose(first[key], value, atol=1e-5) for key, value in load_file(out).items())
    assert metadata(out) == metadata(trained.file)
    capsys.readouterr()
    assert avarc(*words, "--aesthetic-scores", setting.scores, "--overwrite") == 0
    pooled = "cond_pooled_proj.weight" if trained.kind == "vq" else "text_pooled_emb.weight"
    assert f"new weights for {pooled}" in " ".join(capsys.readouterr().err.split())
    second = load_file(out)
    assert second[pooled].shape[1] == first[pooled].shape[1] + 256
    assert all(torch.allclose(first[key], value, atol=1e-5) for key, value in second.items() if key != pooled)
    assert float(metadata(out)["sample_aesthetic_score"]) == pytest.approx(
        sum(i % 5 + 2 for i in range(24)) / 24, abs=0.01
    )


def test_scores_of_images_change_what_is_learnt(setting, tmp_path):
    words = ["-q", "train", "maskgen", setting.images, *setting.reads, "--tokenizer", setting.vq, *SHAPE, *BRIEF]
    made = []
    for number, scores in enumerate((setting.scores, tmp_path / "other.csv")):
        if number:
            scores.write_text(setting.scores.read_text().replace(",2\n", ",9\n"))
        out = tmp_path / f"{number}.safetensors"
        assert avarc(*words, "--lr", "0.01", "--aesthetic-scores", scores, "--out", out) == 0
        made.append(load_file(out))
    assert not torch.equal(made[0]["cond_pooled_proj.weight"], made[1]["cond_pooled_proj.weight"])


def test_a_vae_without_captions_is_a_titok(setting, tmp_path):
    out = tmp_path / "vae.safetensors"
    assert avarc("-q", "train", "titok", setting.images, "--vae", *SMALL, *BRIEF, "--out", out) == 0
    assert metadata(out) == {"family": "titok", "preprocess": "fit"}
    assert avarc("-q", "encode", setting.images, "--tokenizer", out, "--samples", "1", "--out", tmp_path / "t.h5") == 0


@pytest.mark.parametrize("vae", [[], ["--vae"]])
def test_a_batch_in_two_passes_teaches_the_same(setting, tmp_path, vae):
    shape = [*SMALL, *(vae or ["--vocab", "12", "--no-reanchor"])]
    words = ["-q", "train", "tatitok", setting.images, *setting.reads, *shape, *BRIEF]
    made = []
    for passes in (1, 2):
        out = tmp_path / f"{passes}.safetensors"
        assert avarc(*words, "--accumulate", passes, "--out", out) == 0
        made.append(load_file(out))
    assert all(torch.allclose(value, made[1][key], atol=2e-4) for key, value in made[0].items())


@pytest.mark.parametrize(
    ("command", "options", "code", "says"),
    [
        ("titok", ["--vae", "--vocab", "12"], 2, "no use for --vocab with --vae"),
        ("titok", ["--vae", "--codes-of", "digits-vq"], 2, "no use for --vae in two stages"),
        ("tatitok", ["--vae", "--reanchor"], 2, "no use for --reanchor with --vae"),
        ("tatitok", ["--patch", "3"], 2, "do not fill images"),
        ("tatitok", ["--text-encoder", "nowhere"], 2, "nowhere"),
        ("maskgit", ["--tokenizer", "digits-vqvae"], 2, "it reads tokens on one grid, or without a position"),
        ("maskgen", ["--tokenizer", "digits-vq"], 2, "it reads tokens without a position"),
        ("maskgen", ["--tokenizer", "vq.safetensors", "--head-width", "8"], 2, "which need no such head"),
        ("maskgen", ["--tokenizer", "vq.safetensors", "--width", "30", "--heads", "4"], 2, "cannot have 4 heads"),
        ("maskgen", ["--tokenizer", "vq.safetensors", "--start-from", "vq.safetensors"], 1, "vq.safetensors"),
        ("maskgen", ["--tokenizer", "vq.safetensors", "--start-from", "x", "--depth", "2"], 2, "'x' does not exist"),
        ("maskgen", ["--tokenizer", "vq.safetensors", "--aesthetic-scores", "captions.json"], 2, "has no scores of"),
        ("maskgen", ["--tokenizer", "vq.safetensors", "--aesthetic-scores", "high.csv"], 2, "has the score '11'"),
        (
            "maskgen",
            ["--tokenizer", "vq.safetensors", "--aesthetic-scores", "few.csv"],
            2,
            "without an aesthetic score",
        ),
    ],
)
def test_what_does_not_fit_is_refused(setting, tmp_path, monkeypatch, capsys, command, options, code, says):
    monkeypatch.chdir(setting.folder)
    (setting.folder / "high.csv").write_text("image,score\nleft/01.png,11\n")
    (setting.folder / "few.csv").write_text("image,score\nleft/01.png,1\n")
    reads = setting.reads if command in ("tatitok", "maskgen") else []
    small = SMALL if command.endswith("titok") else []
    words = ["train", command, setting.images, *reads, *small, *BRIEF, "--out", tmp_path / "x.safetensors", *options]
    assert avarc(*words) == code
    assert says in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_start_of_another_kind_or_tokenizer_is_refused(setting, trained, tmp_path, capsys):
    other = setting.vae if trained.kind == "vq" else setting.vq
    words = ["train", "maskgen", setting.images, *setting.reads, *BRIEF, "--start-from", trained.file]
    assert avarc(*words, "--tokenizer", other, "--out", tmp_path / "x.safetensors") == 2
    assert "cannot start from" in capsys.readouterr().err
    again = tmp_path / "again.safetensors"
    kind = ["--vae"] if trained.kind == "vae" else ["--vocab", "12"]
    tokenizer = ["-q", "train", "tatitok", setting.images, *setting.reads, *SMALL, *kind, *BRIEF, "--seed", "1"]
    assert avarc(*tokenizer, "--out", again) == 0
    assert avarc(*words, "--tokenizer", again, "--out", tmp_path / "x.safetensors") == 1
    assert "reads the tokens of another tokenizer" in capsys.readouterr().err
