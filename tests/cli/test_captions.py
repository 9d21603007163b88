"""Captions through the commands: a toy generator of captions with a text encoder of a few kilobytes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from caption_toy import FAMILY, tensors
from conftest import GOLDEN
from golden import fill
from PIL import Image
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from tiny_encoders import tiny_clip, tiny_t5

from avarc_cli import families
from avarc_cli.cli import main
from avarc_cli.zoo.local_files import ASSETS

DIGITS = ASSETS / "digits" / "test"
NAMES = "zero one two three four five six seven eight nine".split()


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module", autouse=True)
def caption_family():
    """The toy family, as if it were one of avarc's."""
    before = families.GENERATORS.own
    families.GENERATORS.own = {**before, "caption-toy": "caption_toy:FAMILY"}
    assert families.GENERATORS.get("caption-toy") is FAMILY
    yield
    families.GENERATORS.own = before


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A generator of captions, a text encoder, a cache of ten images and a file of their captions."""
    folder = tmp_path_factory.mktemp("captions")
    save_file(tensors(), folder / "toy.safetensors")
    avarc("-q", "encode", DIGITS, "--tokenizer", "digits-vq", "--sample", "10", "--out", folder / "t.h5")
    (folder / "c.txt").write_text("".join(f"the digit {name}\n" for name in NAMES))
    named = {str(i): [f"the digit {name}", f"a photo of the digit {name}"] for i, name in enumerate(NAMES)}
    (folder / "c.json").write_text(json.dumps(named))
    model = ["--model", folder / "toy.safetensors", "--tokenizer", "digits-vq"]
    encoder = ["--text-encoder", tiny_t5(folder / "t5")]
    return SimpleNamespace(folder=folder, cache=folder / "t.h5", model=model, encoder=encoder, t5=folder / "t5")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AVARC_HOME", str(tmp_path / "home"))


def likelihoods(run):
    """(images, candidates, tokens)."""
    files = sorted((run / "likelihood").iterdir(), key=lambda path: int(path.stem))
    return np.stack([np.load(path)["log_likelihood"] for path in files])


def test_captions_of_a_text_file_are_candidates(setting, tmp_path):
    run, captions = tmp_path / "run", setting.folder / "c.txt"
    words = ["-q", "classify", setting.cache, *setting.model, "--captions", captions, *setting.encoder]
    assert avarc(*words, "--out", run, "--save-likelihood", "--score", "pmi") == 0
    recorded = json.loads((run / "run.json").read_text())
    assert recorded["candidate_ids"] == [f"the digit {name}" for name in NAMES]
    assert recorded["captions"]["encoder"]["name"] == "t5" and len(recorded["captions"]["sha256"]) == 64
    assert "rule" not in recorded["captions"] and "templates" not in recorded["captions"]
    assert likelihoods(run).shape == (10, 10, 64)


def test_features_of_a_file_score_as_their_captions(setting, tmp_path):
    features, captions = tmp_path / "f.safetensors", setting.folder / "c.json"
    assert avarc("-q", "captions", "encode", captions, "--encoder", setting.t5, "--out", features) == 0
    made = load_file(features)
    assert made["sequence"].shape[0] == 20 and made["empty_length"].tolist() == [1]
    common = ["-q", "classify", setting.cache, *setting.model, "--save-likelihood", "--captions"]
    assert avarc(*common, captions, *setting.encoder, "--out", tmp_path / "a") == 0
    assert avarc(*common, features, "--out", tmp_path / "b") == 0
    assert np.array_equal(likelihoods(tmp_path / "a"), likelihoods(tmp_path / "b"))
    recorded = json.loads((tmp_path / "a" / "run.json").read_text())
    assert recorded["captions"]["rule"].startswith("mean of the log-likelihoods")
    assert recorded["candidate_ids"] == [str(i) for i in range(10)]
    metrics = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in "ab"]
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"], "the names are matched with the images' classes"


def test_several_captions_are_averaged_token_by_token(setting, tmp_path):
    texts = {"first": "the digit {}", "second": "a photo of the digit {}"}
    for key, text in texts.items():
        named = {str(i): text.format(name) for i, name in enumerate(NAMES)}
        (tmp_path / f"{key}.json").write_text(json.dumps(named))
    files = {"both": setting.folder / "c.json"} | {key: tmp_path / f"{key}.json" for key in texts}
    for key, file in files.items():
        words = ["classify", setting.cache, *setting.model, *setting.encoder, "--captions", file, "--save-likelihood"]
        assert avarc("-q", *words, "--out", tmp_path / key) == 0
    both, first, second = (likelihoods(tmp_path / key) for key in ("both", "first", "second"))
    assert np.allclose(both, (first + second) / 2, atol=1e-5)


def test_templates_take_the_names_of_the_images_classes(setting, tmp_path):
    run = tmp_path / "run"
    words = ["classify", setting.cache, *setting.model, *setting.encoder, "--template", "a photo of the digit {}"]
    assert avarc("-q", *words, "--template", "{}", "--out", run, "--plan", "4:3,8:1") == 0
    recorded = json.loads((run / "run.json").read_text())
    assert recorded["candidate_names"] == [str(i) for i in range(10)]
    assert recorded["captions"]["templates"] == ["a photo of the digit {}", "{}"]
    assert recorded["captions"]["count"] == 20
    assert "accuracy" in json.loads((run / "metrics.json").read_text())


def test_templates_take_names_of_the_user_and_some_of_them_compete(setting, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    words = ["classify", setting.cache, *setting.model, *setting.encoder, "--template", "the digit {}"]
    named = [*words, "--class-names", tmp_path / "names.txt", "--classes", "three,nine", "--out", tmp_path / "run"]
    assert avarc("-q", *named) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["candidate_names"] == ["three", "nine"]


def test_a_run_is_continued_explained_exported_and_repeated_with_its_captions(setting, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["classify", setting.cache, *setting.model, *setting.encoder, "--template", "the digit {}", "--save-json"]
    assert avarc("-q", *words, "--out", run) == 0
    assert avarc("-q", *words, "--out", run) == 0
    assert avarc("-q", "explain", run, "--out", tmp_path / "e.png", "--limit", "2") == 0
    capsys.readouterr()
    assert avarc("--json", "report", run, "--out", tmp_path / "r.html") == 0
    assert json.loads(capsys.readouterr().out)["explained"] > 0
    assert avarc("-q", "export", run, "--out", tmp_path / "e.npz") == 0
    assert avarc("-q", "classify", "--config", run / "run.json", "--out", tmp_path / "again") == 0
    assert (run / "predictions.jsonl").read_bytes() == (tmp_path / "again" / "predictions.jsonl").read_bytes()
    capsys.readouterr()
    other = [*words[:-3], "--template", "a {}", "--save-json", "--out", run]
    assert avarc(*other) == 2
    assert "captions" in capsys.readouterr().err


def test_an_explanation_with_other_captions_is_refused(setting, tmp_path, capsys):
    captions, run = tmp_path / "c.json", tmp_path / "run"
    captions.write_text(json.dumps({str(i): name for i, name in enumerate(NAMES)}))
    words = ["classify", setting.cache, *setting.model, *setting.encoder, "--captions", captions, "--out", run]
    assert avarc("-q", *words) == 0
    captions.rename(tmp_path / "moved.json")
    assert avarc("explain", run, "--out", tmp_path / "f.png", "--limit", "1") == 2
    assert "--captions FILE" in capsys.readouterr().err
    moved = ["--captions", tmp_path / "moved.json"]
    assert avarc("-q", "explain", run, *moved, "--out", tmp_path / "f.png", "--limit", "1") == 0
    capsys.readouterr()
    assert avarc("--json", "report", run, *moved, "--out", tmp_path / "r.html") == 0
    assert json.loads(capsys.readouterr().out)["explained"] > 0
    captions.write_text(json.dumps({str(i): f"a {name}" for i, name in enumerate(NAMES)}))
    assert avarc("explain", run, "--out", tmp_path / "g.png", "--limit", "1") == 2
    assert "put back the run's captions" in capsys.readouterr().err


def test_plans_are_tuned_for_captions_and_caches_exported(setting, tmp_path, capsys):
    plan, cache = tmp_path / "plan.json", tmp_path / "t.h5"
    captions = [*setting.model, *setting.encoder, "--captions", setting.folder / "c.json"]
    assert avarc("-q", "encode", DIGITS, "--tokenizer", "digits-vq", "--sample", "20", "--out", cache) == 0
    assert avarc("-q", "tune", cache, *captions, "--agreement", "0.8", "--out", plan) == 0
    assert avarc("-q", "classify", setting.cache, *captions, "--plan", plan) == 0
    other = [*setting.model, *setting.encoder, "--captions", setting.folder / "c.txt"]
    assert avarc("classify", setting.cache, *other, "--plan", plan) == 2
    assert "captions.sha256" in capsys.readouterr().err
    assert avarc("-q", "export", setting.cache, *captions, "--out", tmp_path / "e.npz") == 0
    assert np.load(tmp_path / "e.npz")["log_likelihood"].shape == (10, 10)


def test_pictures_are_drawn_of_captions(setting, tmp_path):
    words = ["-q", "sample", *setting.model, "--count", "2"]
    assert avarc(*words, "the digit three, small", "nine", "--out", tmp_path / "no.png") == 1
    assert avarc(*words, *setting.encoder, "the digit three, small", "--out", tmp_path / "yes.png") == 0
    save_file(tensors(), tmp_path / "own.safetensors", {"text_encoder": str(setting.t5)})
    own = ["--model", tmp_path / "own.safetensors", "--tokenizer", "digits-vq", "--count", "2"]
    assert avarc("-q", "sample", "the digit three, small", "nine", *own, "--out", tmp_path / "a.png") == 0
    alone = ["-q", "sample", "nine", *own, "--out", tmp_path / "alone"]
    assert avarc(*alone) == 0 and avarc("-q", "sample", "three", "nine", *own, "--out", tmp_path / "both") == 0
    first, second = ((tmp_path / folder / "nine" / "001.png").read_bytes() for folder in ("alone", "both"))
    assert first == second, "whatever the other captions are"
    captions = ["--captions", setting.folder / "c.json", *setting.encoder]
    assert avarc(*words, "3", "9", *captions, "--out", tmp_path / "b.png") == 0
    assert avarc(*words, "3", *setting.encoder, "--template", "a {}", "--out", tmp_path / "pictures") == 0
    assert sorted(path.name for path in (tmp_path / "pictures" / "3").iterdir()) == ["000.png", "001.png"]


def test_an_aesthetic_score_is_given_to_the_model_and_recorded(setting, tmp_path, capsys):
    words = ["classify", setting.cache, *setting.model, "--captions", setting.folder / "c.txt", *setting.encoder]
    for score in ("2", "3"):
        run = tmp_path / score
        assert avarc("-q", *words, "--aesthetic-score", score, "--out", run, "--save-likelihood") == 0
        assert json.loads((run / "run.json").read_text())["captions"]["aesthetic_score"] == float(score)
    assert not np.array_equal(likelihoods(tmp_path / "2"), likelihoods(tmp_path / "3"))
    assert avarc("-q", "explain", tmp_path / "2", "--out", tmp_path / "e.png", "--limit", "1") == 0
    for wrong in ("11", "-1", "nan"):
        assert avarc(*words, "--aesthetic-score", wrong) == 2
        assert "--aesthetic-score" in capsys.readouterr().err


def test_features_are_encoded_once_and_the_encoder_is_then_not_needed(setting, tmp_path, monkeypatch):
    from avarc_cli.text import encoders

    words = ["-q", "classify", setting.cache, *setting.model, *setting.encoder, "--captions", setting.folder / "c.txt"]
    assert avarc(*words) == 0
    monkeypatch.setattr(encoders.Found, "load", lambda *_: pytest.fail("it was encoded again"))
    assert avarc(*words) == 0


def test_long_captions_are_cut_with_a_note(setting, tmp_path, capsys):
    (tmp_path / "c.txt").write_text("the digit three\n" + "zero " * 130 + "\n")
    words = [*setting.model, *setting.encoder, "--captions", tmp_path / "c.txt"]
    assert avarc("classify", setting.cache, *words) == 0
    assert "1 caption was cut to 120 positions" in " ".join(capsys.readouterr().err.split())
    out = tmp_path / "f.safetensors"
    assert avarc("captions", "encode", tmp_path / "c.txt", "--encoder", setting.t5, "--out", out) == 0
    said = capsys.readouterr()
    assert "1 caption was cut to 120 positions" in " ".join(said.err.split())
    assert "2 captions of 2 candidates: sequence 2 x 120 x 16" in " ".join(said.out.split())


def test_features_that_do_not_fit_name_both_sides(setting, tmp_path, capsys):
    def refused(features, *says):
        assert avarc("classify", setting.cache, *setting.model, "--captions", features) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert all(each in error for each in says), error

    wide = tmp_path / "wide.safetensors"
    encoder = tiny_t5(tmp_path / "wide", width=24)
    assert avarc("-q", "captions", "encode", setting.folder / "c.txt", "--encoder", encoder, "--out", wide) == 0
    refused(wide, "24 channels", "16")
    sequence, length = np.ones((2, 130, 16), np.float32), np.array([130, 3])
    names = {"names": '["cat", "dog"]'}
    save_arrays({"sequence": sequence, "length": length}, tmp_path / "long.safetensors", names)
    refused(tmp_path / "long.safetensors", "'cat' has 130 positions, it reads 120")
    other = {"sequence": sequence[:, :3], "length": np.array([3, 3])}
    save_arrays(other, tmp_path / "other.safetensors", names | {"encoder": "clip-vit-l-14-336"})
    refused(tmp_path / "other.safetensors", "clip-vit-l-14-336 encoded them", "flan-t5-xl")
    words = ["--captions", setting.folder / "c.txt", "--text-encoder", tiny_clip(tmp_path / "clip")]
    assert avarc("classify", setting.cache, *setting.model, *words) == 2
    assert "--text-encoder flan-t5-xl" in capsys.readouterr().err


def test_without_features_of_the_empty_caption_there_is_no_p_of_x(setting, tmp_path, capsys):
    features = {"sequence": np.ones((2, 3, 16), np.float32), "length": np.array([3, 3])}
    save_arrays(features, tmp_path / "f.safetensors", {"names": '["cat", "dog"]'})
    words = ["classify", setting.cache, *setting.model, "--captions", tmp_path / "f.safetensors"]
    assert avarc("-q", *words) == 0
    assert avarc(*words, "--score", "pmi") == 2
    assert "gives no p(x)" in capsys.readouterr().err


WRONG = [
    (["{model}"], "name captions: --captions FILE or --template"),
    (["{model}", "--captions", "{c}", "--template", "a {}"], "--captions and --template exclude each other"),
    (["{model}", "--template", "a photo"], "cannot use the template 'a photo'"),
    (["{model}", "--captions", "{c}", "--text-encoder", "flan-t5"], "no text encoder is called 'flan-t5'"),
    (["{model}", "--captions", "{c}", "--text-encoder", "{c}"], "is not a folder"),
    (["{model}", "--text-encoder", "flan-t5-xl"], "name captions: --captions FILE or --template"),
    (["--model", "digits-llamagen", "--text-encoder", "flan-t5-xl"], "'digits-llamagen' reads no captions"),
    (["--model", "digits-llamagen", "--aesthetic-score", "5"], "no use for --aesthetic-score"),
    (["{model}", "--captions", "f.safetensors", "--text-encoder", "flan-t5-xl"], "'f.safetensors' does not exist"),
    (["{model}", "--captions", "nowhere.txt"], "'nowhere.txt' does not exist"),
    (["{model}", "--captions", "{c}", "--classes", "the digit ten"], "not classes of c.txt: the digit ten"),
    (["--model", "digits", "--captions", "{c}"], "'digits' reads no captions"),
    (["--model", "digits-llamagen", "--template", "a {}"], "'digits-llamagen' reads no captions"),
    (["--model", "llamagen-t2i-xl-256"], "name captions: --captions FILE or --template"),
]


@pytest.mark.parametrize(("options", "says"), WRONG)
def test_wrong_requests(setting, capsys, options, says):
    words = []
    for option in options:
        words += setting.model if option == "{model}" else [option.replace("{c}", str(setting.folder / "c.txt"))]
    assert avarc("classify", setting.cache, *words) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_an_encoder_that_is_not_here_names_its_command(setting, hub, capsys):
    assert avarc("classify", setting.cache, *setting.model, "--captions", setting.folder / "c.txt") == 1
    assert "avarc download flan-t5-xl" in capsys.readouterr().err
    out = setting.folder / "x.safetensors"
    assert avarc("captions", "encode", setting.folder / "c.txt", "--encoder", "flan-t5-xl", "--out", out) == 1
    assert "avarc download flan-t5-xl" in capsys.readouterr().err and not out.exists()


def test_images_without_classes_need_names_for_a_template(setting, tmp_path, capsys):
    picture = next((DIGITS / "3").iterdir())
    words = ["classify", picture, *setting.model, *setting.encoder, "--template", "the digit {}"]
    assert avarc(*words) == 2
    assert "--class-names FILE" in capsys.readouterr().err
    assert avarc("-q", *words, "--classes", "three,nine") == 0


@pytest.mark.parametrize(
    "words", [["add-class", "ten", DIGITS / "3", "--bank", "{bank}"], ["train", "cca", DIGITS, "--out", "{bank}"]]
)
def test_models_of_captions_take_no_classes(setting, tmp_path, capsys, words):
    own = [str(word).replace("{bank}", str(tmp_path / "bank")) for word in words]
    assert avarc(*own, *setting.model) == 2
    error = capsys.readouterr().err
    assert "a model of captions" in error


def test_a_model_of_captions_is_registered_under_a_name(setting, tmp_path, capsys):
    name = ["models", "add", "toy", setting.folder / "toy.safetensors", "--tokenizer", "digits-vq"]
    assert avarc("-q", *name) == 0
    words = ["classify", setting.cache, "--model", "toy"]
    assert avarc(*words) == 2
    assert "'toy' has no classes" in capsys.readouterr().err
    assert avarc("-q", *words, "--captions", setting.folder / "c.txt", *setting.encoder) == 0


def test_the_features_are_not_written_over_another_file(setting, tmp_path, capsys):
    out = tmp_path / "f.safetensors"
    out.write_bytes(b"a photo")
    words = ["captions", "encode", setting.folder / "c.txt", "--encoder", setting.t5, "--out", out]
    assert avarc(*words) == 2 and avarc(*words, "--overwrite") == 2
    assert out.read_bytes() == b"a photo"
    assert avarc(*words[:-1], tmp_path / "f.npz") == 2


def test_names_of_a_file_are_put_into_templates_when_encoded(setting, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    words = ["captions", "encode", tmp_path / "names.txt", "--encoder", setting.t5, "--template", "the digit {}"]
    assert avarc("-q", *words, "--template", "a {}", "--out", tmp_path / "f.safetensors") == 0
    run = ["classify", setting.cache, *setting.model, "--captions", tmp_path / "f.safetensors", "--out"]
    assert avarc("-q", *run, tmp_path / "run") == 0
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recorded["candidate_ids"] == NAMES and recorded["captions"]["count"] == 20


@pytest.fixture(scope="module")
def tatitok(tmp_path_factory):
    """A TA-TiTok, a text encoder with the features that it reads, and a cache of two images."""
    folder = tmp_path_factory.mktemp("tatitok")
    meta, arrays = fill.load_golden(GOLDEN / "tatitok_tiny.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    torch.save({key: torch.from_numpy(value) for key, value in filled.items()}, folder / "w.bin")
    (folder / "config.json").write_text(json.dumps(meta["config"]))
    positions, width = arrays["text"].shape[-2:]
    side = arrays["image"].shape[-1]
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
        (folder / "img").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "img" / f"{i}.png")
    words = ["encode", folder / "img", "--tokenizer", folder / "w.bin", "--preprocess", "none"]
    assert avarc("-q", *words, "--out", folder / "t.h5") == 0
    clip = tiny_clip(tmp_path_factory.mktemp("clip"), width=width, positions=positions)
    return SimpleNamespace(cache=folder / "t.h5", file=folder / "w.bin", clip=clip)


def test_a_decoder_that_reads_text_is_given_a_caption(tatitok, tmp_path, capsys):
    words = ["cache", "head", tatitok.cache, "--tokenizer", tatitok.file, "--picture"]
    encoder = ["--text-encoder", tatitok.clip]
    assert avarc("-q", *words, tmp_path / "dog.png", "--caption", "a dog", *encoder) == 0
    assert avarc("-q", *words, tmp_path / "none.png", "--caption", "", *encoder) == 0
    assert (tmp_path / "dog.png").read_bytes() != (tmp_path / "none.png").read_bytes()
    assert avarc(*words, tmp_path / "x.png") == 2
    assert "--caption TEXT" in capsys.readouterr().err
    assert avarc(*words, tmp_path / "x.png", "--caption", "a dog", "--text-encoder", tiny_t5(tmp_path / "t5")) == 2
    assert "another text encoder" in capsys.readouterr().err
    narrow = tiny_clip(tmp_path / "narrow", width=8)
    assert avarc(*words, tmp_path / "x.png", "--caption", "a dog", "--text-encoder", narrow) == 2
    assert avarc(*words[:-1], "--caption", "a dog") == 2
    assert not (tmp_path / "x.png").exists()


def test_a_caption_for_another_decoder_is_refused(setting, tmp_path, capsys):
    words = ["cache", "head", setting.cache, "--tokenizer", "digits-vq", "--picture", tmp_path / "x.png"]
    assert avarc(*words, "--caption", "a dog") == 2
    assert "decodes without a caption" in capsys.readouterr().err


def test_pictures_of_captions_are_decoded_with_them(tatitok, tmp_path):
    from avarc_cli.loading import ModelSpec, load_model, load_tokenizer

    reader = load_tokenizer(str(tatitok.file))
    made = tensors(width=768, tokens=reader.layout.num_tokens, codes=reader.vocab_size)
    save_file(made, tmp_path / "toy.safetensors", {"text_encoder": "clip-vit-l-14-336"})
    model = load_model(
        ModelSpec(
            str(tmp_path / "toy.safetensors"),
            str(tatitok.file),
            templates=("a {}",),
            template_names=("cat", "dog"),
            text_encoder=tatitok.clip,
        )
    )
    tokens = torch.zeros(2, reader.layout.num_tokens, dtype=torch.int64)
    cat, dog = model.decoder([0, 1]).decode(tokens)
    assert not torch.equal(cat, dog)
    assert torch.equal(model.decoder([1, 0]).decode(tokens)[1], cat)
    model.tokenizer.decode(tokens)  # with the empty caption
