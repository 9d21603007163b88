"""`avarc train titok` in two stages: what is written, what is trained, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_datasets import halves

from avarc_cli import families
from avarc_cli.cli import main
from avarc_cli.data.datasets import open_images
from avarc_cli.errors import CheckpointError, Interrupted
from avarc_cli.loading import load_tokenizer
from avarc_cli.train import stages
from avarc_cli.train.images import Augment
from avarc_cli.train.published_loss import Terms
from avarc_cli.train.recipe import Recipe

VQ = ["--image-size", "8", "--vocab", "16", "--channels", "4", "--width", "32", "--multipliers", "1,1", "--blocks", "1"]
SHAPE = ["--tokens", "6", "--vocab", "12", "--channels", "4", "--width", "64", "--depth", "1"]
BRIEF = ["--augment", "none", "--batch-size", "8", "--steps", "3"]


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Images in img/, a tokenizer, and both stages of a TiTok, hardly trained."""
    folder = tmp_path_factory.mktemp("stages")
    halves(folder / "img")
    images = folder / "img"
    vq, first, second = (folder / f"{name}.safetensors" for name in ("vq", "first", "second"))
    assert avarc("-q", "train", "maskgit-vq", images, *VQ, *BRIEF, "--out", vq) == 0
    assert avarc("-q", "train", "titok", images, "--codes-of", vq, *SHAPE, *BRIEF, "--out", first) == 0
    words = ["--codes-of", vq, "--start-from", first]
    assert avarc("-q", "train", "titok", images, *words, *BRIEF, "--out", second) == 0
    return SimpleNamespace(folder=folder, images=images, vq=vq, first=first, second=second)


@pytest.fixture(scope="module")
def wrong(setting):
    """Files that are not what is asked for, beside the right ones."""
    folder, images = setting.folder, setting.images
    patches = ["--image-size", "8", "--patch", "4"]
    assert avarc("-q", "train", "titok", images, *patches, *SHAPE, *BRIEF, "--out", folder / "single.safetensors") == 0
    other = {"seed": ["--seed", "1"], "codes": ["--vocab", "20"], "grid": ["--multipliers", "1,1,1"]}
    for name, options in other.items():
        out = folder / f"vq-{name}.safetensors"
        assert avarc("-q", "train", "maskgit-vq", images, *VQ, *BRIEF, *options, "--out", out) == 0
    first = load_file(setting.first)
    save_file(first, folder / "bare.safetensors")  # without metadata, as another program may write it
    save_file({key: value for key, value in first.items() if "ln_pre" not in key}, folder / "cut.safetensors")
    return folder


def test_the_second_stage_is_a_two_stage_titok_that_only_learnt_to_decode(setting):
    vq, first, second = (load_file(path) for path in (setting.vq, setting.first, setting.second))
    loaded = load_tokenizer(str(setting.second))
    config = loaded.network.config
    assert config.l2_norm and config.pixel_decoder == load_tokenizer(str(setting.vq)).network.config
    assert (config.num_tokens, config.vocab_size, config.patch, config.side) == (6, 12, 2, 4)
    assert loaded.preprocess == "fit" and not loaded.inferred
    frozen = {key for key in first if torch.equal(first[key], second[key])}
    assert frozen == {key for key in first if not key.startswith("decoder.")}
    drawing = {f"pixel_{key}": value for key, value in vq.items() if not key.startswith("encoder.")}
    assert second.keys() == first.keys() | drawing.keys()
    assert [key for key in drawing if torch.equal(drawing[key], second[key])] == []
    assert all((drawing[key] - second[key]).abs().max() < 0.01 for key in drawing), (
        "it began with the teacher's decoder"
    )
    assert metadata(setting.second) == {"family": "titok", "use_l2_norm": "true", "preprocess": "fit"}
    assert not list(setting.folder.glob("*.ckpt"))


@pytest.mark.parametrize(("network", "family"), [("uvit", "maskgit"), ("bert", "maskgit-bert")])
def test_a_maskgit_learns_its_tokens(setting, tmp_path, capsys, network, family):
    cache, model, run = tmp_path / "t.h5", tmp_path / "maskgit.safetensors", tmp_path / "run"
    assert avarc("-q", "encode", setting.images, "--tokenizer", setting.second, "--out", cache) == 0
    shape = ["--network", network, "--depth", "2", "--width", "32", "--heads", "2"]
    words = ["--tokenizer", setting.second, *shape, *BRIEF, *(["--dropout", "0.1"] if network == "bert" else [])]
    assert avarc("-q", "train", "maskgit", setting.images, *words, "--out", model) == 0
    assert metadata(model)["family"] == family
    assert ("model.encoder.layer.1.output.dense.weight" in load_file(model)) == (network == "bert")
    assert avarc("-q", "classify", cache, "--model", model, "--tokenizer", setting.second, "--out", run) == 0
    assert json.loads((run / "metrics.json").read_text())["images"] == 24


def test_a_bert_begins_as_transformers_begins_it_and_has_as_many_blocks_as_asked(setting):
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(setting.second)).network
    model = families.GENERATORS.get("maskgit-bert").new(tokenizer, 3, depth=3, width=96, heads=2)
    tensors = model.checkpoint_tensors()
    assert "model.encoder.layer.2.output.dense.weight" in tensors and model.config.hidden == 4 * 96
    for name, tensor in tensors.items():
        if name.endswith("LayerNorm.weight"):
            assert (tensor == 1).all()
        elif name.endswith("bias"):
            assert (tensor == 0).all()
        else:
            assert abs(tensor.std() - 0.02) < 0.004 and (tensor.numel() < 5000 or tensor.abs().max() > 0.06)


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--network", "gpt"], "no network 'gpt'"), (["--dropout", "0.1"], "a UViT has no dropout")],
)
def test_what_a_maskgit_cannot_be_is_said(setting, tmp_path, capsys, words, says):
    line = ["train", "maskgit", setting.images, "--tokenizer", setting.second, *words]
    assert avarc(*line, "--out", tmp_path / "m.st") == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_first_stage_neither_encodes_nor_decodes(setting, tmp_path, capsys):
    assert "pixel_quantize.embedding.weight" not in load_file(setting.first)
    assert avarc("encode", setting.images, "--tokenizer", setting.first, "--out", tmp_path / "t.h5") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "is only the first stage of a TiTok" in said and "avarc train titok --start-from" in said


@pytest.mark.parametrize("stage", ["first", "second", "second, adversarial"])
def test_a_stage_gives_the_same_bytes_again_and_after_an_interruption(setting, wrong, tmp_path, stage):
    images, vq = open_images([setting.images]), load_tokenizer(str(setting.vq))
    shape = {"patch": None, "num_tokens": 6, "vocab_size": 12, "code_channels": 4, "width": 64, "depth": 1}

    def train(name, *, seed=3, dies=None, teacher=vq, start=setting.first):
        def progress(step, values):
            if step == dies:
                raise KeyboardInterrupt

        recipe = Recipe(steps=6, batch_size=4, lr=1e-3, save_every=2, seed=seed)
        how = {"family": "titok", "augment": Augment(mode="none"), "progress": progress}
        out = tmp_path / name
        if stage == "first":
            stages.train_first_stage(images, out, teacher, shape, recipe, **how)
        else:
            terms = Terms(adversarial=stage != "second", discriminator_start=0.0)
            stages.train_second_stage(images, out, start, teacher, recipe, terms=terms, **how)
        return out.read_bytes()

    whole = train("a")
    assert train("b") == whole and train("c", seed=4) != whole
    with pytest.raises(Interrupted):
        train("d", dies=5)
    with pytest.raises(CheckpointError, match="belongs to a"):
        train("d", seed=4)
    other = {"teacher": load_tokenizer(str(wrong / "vq-seed.safetensors")), "start": wrong / "bare.safetensors"}
    with pytest.raises(CheckpointError, match="belongs to a"):
        train("d", **other)
    assert train("d") == whole


FIRST = ["--codes-of", "vq.safetensors"]
SECOND = [*FIRST, "--start-from"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--codes-of", "nonsense"], 2, "nonsense"),
        (["--codes-of", "nowhere.safetensors"], 2, "there is no file nowhere.safetensors"),
        (["--codes-of", "digits-vq"], 2, "and a MaskGIT-VQGAN is needed"),
        (["--codes-of", "digits-vqvae"], 2, "a TiTok cannot predict the codes of digits-vqvae"),
        (["--codes-of", "single.safetensors"], 2, "it is a TiTok, and a MaskGIT-VQGAN is needed"),
        ([*FIRST, "--patch", "4"], 2, "one of its tokens covers 2 x 2 pixels"),
        ([*FIRST, "--image-size", "9"], 1, "cannot read images of 9 pixels"),
        ([*FIRST, "--width", "65"], 2, "multiple of 64"),
        ([*FIRST, "--out", "vq.safetensors", "--overwrite"], 2, "this command reads it"),
        (["--start-from", "first.safetensors"], 2, "--start-from needs --codes-of"),
        ([*SECOND, "first.safetensors", "--patch", "2", "--tokens", "6"], 2, "no use for --patch, --tokens"),
        ([*SECOND, "first.safetensors", "--out", "first.safetensors", "--overwrite"], 2, "this command reads it"),
        ([*SECOND, "nowhere.safetensors"], 2, "'nowhere.safetensors' does not exist"),
        ([*SECOND, "img"], 2, "'img' is a folder"),
        ([*SECOND, "img/left/01.png"], 1, "01.png"),
        ([*SECOND, "single.safetensors"], 2, "single.safetensors is not the first stage of a TiTok"),
        ([*SECOND, "second.safetensors"], 2, "it draws pixels already"),
        ([*SECOND, "vq.safetensors", "--out", "x"], 2, "its tensors are not those of a TiTok"),
        ([*SECOND, "cut.safetensors"], 1, "missing"),
        (["--codes-of", "vq-seed.safetensors", "--start-from", "first.safetensors"], 2, "codes of another tokenizer"),
        ([*SECOND, "first.safetensors", "--image-size", "12"], 2, "and the tokens are 6 x 6 of 2 pixels"),
        (["--codes-of", "vq-codes.safetensors", "--start-from", "bare.safetensors"], 2, "it predicts 16 codes, and"),
        (["--codes-of", "vq-grid.safetensors", "--start-from", "bare.safetensors"], 2, "4 x 4 patches of 2 pixels"),
    ],
)
def test_a_wrong_request_is_one_message(setting, wrong, monkeypatch, capsys, options, code, says):
    monkeypatch.chdir(wrong)
    out = [] if "--out" in options else ["--out", "x"]
    assert avarc("train", "titok", "img", *BRIEF, *options, *out) == code
    said = " ".join(capsys.readouterr().err.split())
    assert says in said and "Traceback" not in said
    assert not (wrong / "x").exists() and not (wrong / "x.ckpt").exists()


def test_a_first_stage_of_another_program_needs_no_metadata(setting, wrong, tmp_path):
    words = ["--codes-of", setting.vq, "--start-from", wrong / "bare.safetensors", *BRIEF]
    assert avarc("-q", "train", "titok", setting.images, *words, "--out", tmp_path / "x") == 0
    assert (tmp_path / "x").read_bytes() == setting.second.read_bytes()
