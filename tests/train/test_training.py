"""Training of tokenizer and generator: it learns, it resumes exactly, and what it saves loads again."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from avarc_cli.cli import main
from avarc_cli.data.datasets import open_images
from avarc_cli.errors import AvarcError, CheckpointError, Interrupted, UsageError
from avarc_cli.loading import ModelSpec, load_model, load_tokenizer
from avarc_cli.train.images import Augment, TrainingImages
from avarc_cli.train.loop import Recipe, train

SHAPE = ["--image-size", "8", "--patch-nums", "1,2,4", "--vocab", "16", "--channels", "4", "--width", "32"]
SMALL = ["--multipliers", "1,1", "--blocks", "1", "--batch-size", "8", "--augment", "none"]
TINY = ["--depth", "1", "--width", "64", "--batch-size", "8", "--augment", "none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes that anyone can tell apart: a bright left half, a bright right half."""
    folder = tmp_path_factory.mktemp("halves")
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 40, (8, 8, 3), dtype=np.uint8)
        pixels[:, slice(0, 4) if i % 2 else slice(4, 8)] += 200
        path = folder / "img" / ("left" if i % 2 else "right") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """Paths of a tokenizer and a VAR that were trained through the command line."""
    images, vq, var = str(folder / "img"), folder / "vq.safetensors", folder / "var.safetensors"
    assert main(["train", "tokenizer", images, *SHAPE, *SMALL, "--steps", "60", "--lr", "2e-3", "--out", str(vq)]) == 0
    options = [*TINY, "--steps", "80", "--lr", "3e-3"]
    assert main(["train", "var", images, "--tokenizer", str(vq), *options, "--out", str(var)]) == 0
    return vq, var


def test_a_trained_pair_classifies_what_it_was_trained_on(folder, trained, tmp_path, capsys):
    vq, var = trained
    models = ["--model", str(var), "--tokenizer", str(vq)]
    assert main(["classify", str(folder / "img"), *models, "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["accuracy"] == 1.0 and set(metrics["per_class"]) == {"left", "right"}
    assert not list(folder.glob("*.ckpt")), "a finished training leaves no checkpoint"


def test_saved_files_carry_scales_preprocessing_and_class_names(trained):
    vq, var = trained
    tokenizer = load_tokenizer(str(vq))
    assert tokenizer.patch_nums == (1, 2, 4) and tokenizer.preprocess == "fit" and tokenizer.image_size == 8
    model = load_model(ModelSpec(str(var), str(vq)))
    assert model.classes.ids == ("left", "right") and model.likelihood.unconditional == 2


def test_augmentations_give_images_of_the_right_size_and_range(folder):
    images = open_images([folder / "img"])
    for mode in ("none", "crop", "affine"):
        batches = [TrainingImages(images, 8, Augment(mode=mode, flip=True), seed=s).batch(3, 16) for s in (1, 1, 2)]
        x, labels, _ = batches[0]
        assert x.shape == (16, 3, 8, 8) and x.dtype == torch.float32 and x.abs().max() <= 1
        assert torch.equal(x, batches[1][0]) and not torch.equal(x, batches[2][0])
        assert labels.shape == (16,)
    with pytest.raises(UsageError, match="no augmentation"):
        Augment(mode="nonsense")


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_unreadable_training_image_is_named_and_nothing_is_done(folder, tmp_path, monkeypatch, capsys, in_memory):
    bad = tmp_path / "img" / "left" / "bad.png"
    bad.parent.mkdir(parents=True)
    bad.write_bytes((folder / "img" / "left" / "01.png").read_bytes()[:60])
    if not in_memory:
        monkeypatch.setattr("avarc_cli.train.images.IN_MEMORY_BYTES", 0)
    out = tmp_path / "x"
    assert main(["train", "tokenizer", str(tmp_path / "img"), *SHAPE, *SMALL, "--steps", "1", "--out", str(out)]) == 1
    err = capsys.readouterr().err
    assert f"cannot read '{bad}'" in err and "why: " in err and "remove it from the training images" in err
    assert not out.exists()


def test_every_image_comes_once_an_epoch(folder):
    images = TrainingImages(open_images([folder / "img"]), 8, Augment(mode="none"), seed=0)
    rows = np.concatenate([images._rows(step, 7) for step in range(24)])
    assert all(sorted(rows[e * 24 : (e + 1) * 24]) == list(range(24)) for e in range(7))


def fit(steps_until_death, checkpoint, recipe, seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 1)

    def loss_of_step(step):
        if step == steps_until_death:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = (model(x)[:, 0] - x.sum(1)).square().mean()
        return loss, {"loss": loss.item()}

    train(model, loss_of_step, recipe, checkpoint, lambda done, values: None, subject="sums")
    return model


RECIPE = Recipe(steps=40, batch_size=8, lr=0.2, save_every=10, average=0.9)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    whole = fit(None, tmp_path / "a.ckpt", RECIPE)
    with pytest.raises(Interrupted, match=r"the last checkpoint is in '.*b\.ckpt'"):
        fit(27, tmp_path / "b.ckpt", RECIPE)
    resumed = fit(None, tmp_path / "b.ckpt", RECIPE, seed=99)
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
    assert (whole.weight - 1).abs().max() < 0.2, "and it has learnt the sum"


def test_an_interruption_before_the_first_checkpoint_says_that_nothing_is_kept(tmp_path):
    with pytest.raises(Interrupted, match="nothing was saved yet"):
        fit(3, tmp_path / "a.ckpt", RECIPE)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_recipe_is_refused_with_both_values(tmp_path):
    fit(None, tmp_path / "a.ckpt", RECIPE)
    with pytest.raises(CheckpointError, match=r"lr: 0\.2 there, 0\.01 here"):
        fit(None, tmp_path / "a.ckpt", Recipe(steps=40, batch_size=8, lr=0.01, save_every=10, average=0.9))


def test_a_damaged_checkpoint_is_named(tmp_path):
    fit(None, tmp_path / "a.ckpt", RECIPE)
    data = (tmp_path / "a.ckpt").read_bytes()
    for damaged in (b"", b"nonsense", data[: len(data) // 2]):
        (tmp_path / "a.ckpt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a\.ckpt is damaged"):
            fit(None, tmp_path / "a.ckpt", RECIPE)


def test_divergence_is_reported(tmp_path):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(AvarcError, match="nan at step 0"):
        train(model, lambda step: (model.weight.sum() * float("nan"), {}), RECIPE, tmp_path / "c", print, subject="")


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_is_a_positive_number(lr):
    with pytest.raises(UsageError, match="learning rate is"):
        Recipe(steps=1, batch_size=1, lr=lr)


def test_the_learning_rate_warms_up_stays_and_falls():
    recipe = Recipe(steps=1000, batch_size=1, lr=1.0, warmup=0.1, flat=0.1, final=0.01)
    rates = [recipe.rate(step) for step in (0, 50, 100, 199, 600, 999)]
    assert rates[0] == pytest.approx(0.005) and rates[1] == pytest.approx(0.5025)
    assert rates[2] == rates[3] == 1.0 and rates[4] == pytest.approx(0.505) and rates[5] < 0.012


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["train", "tokenizer", "img", *SMALL, "--image-size", "9", "--out", "x"], "do not fit 9-pixel"),
        (["train", "tokenizer", "img", *SHAPE, *SMALL, "--augment", "nonsense", "--out", "x"], "nonsense"),
        (["train", "tokenizer", "img", *SHAPE, *SMALL, "--out", "nowhere/x"], "nowhere"),
        (["train", "var", "img/left", "--tokenizer", "vq.safetensors", "--out", "x"], "without a class"),
        (["train", "var", "img", "--tokenizer", "vq.safetensors", "--width", "65", "--out", "x"], "multiple of 64"),
        (["train", "var", "img", "--tokenizer", "nonsense", "--out", "x"], "nonsense"),
    ],
)
def test_a_wrong_request_is_one_message(folder, trained, monkeypatch, capsys, command, says):
    monkeypatch.chdir(folder)
    assert main(command) == 2
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err


TOKENIZER = ["train", "tokenizer", "img", *SHAPE, *SMALL, "--out", "x"]
VAR = ["train", "var", "img", "--tokenizer", "vq.safetensors", *TINY, "--out", "x"]
BOTH = ("steps", "0"), ("batch-size", "0"), ("seed", "-1"), ("seed", str(2**64)), ("width", "0"), ("width", "-64")
BOTH += (("lr", "-1"), ("lr", "nan"), ("device", "nonsense"))
OWN = ("vocab", "0"), ("channels", "0"), ("blocks", "0"), ("image-size", "0"), ("width", "48")


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        *((command, *pair) for command in (TOKENIZER, VAR) for pair in BOTH),
        *((TOKENIZER, *pair) for pair in OWN),
        (VAR, "depth", "0"),
        (VAR, "class-dropout", "nan"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else value,
)
def test_a_value_out_of_range_is_refused_by_name(folder, trained, monkeypatch, capsys, command, option, value):
    monkeypatch.chdir(folder)
    assert main([*command, f"--{option}", value]) == 2
    err = capsys.readouterr().err
    named = {"lr": "learning rate", "class-dropout": "class dropout"}.get(option, option)
    assert named in err and "bug" not in err and "Traceback" not in err
    assert not (folder / "x").exists() and not (folder / "x.ckpt").exists()


@pytest.mark.parametrize("command", [TOKENIZER, VAR], ids=["tokenizer", "var"])
def test_json_may_stand_at_the_end(folder, trained, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(folder)
    out = tmp_path / "weights"
    assert main([*command, "--out", str(out), "--steps", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"weights": str(out)} and out.exists()


@pytest.mark.parametrize(
    ("command", "function"), [(TOKENIZER, "tokenizer.train_tokenizer"), (VAR, "generator.train_var")]
)
def test_the_device_reaches_the_training(folder, trained, tmp_path, monkeypatch, command, function):
    """As far as it can be told without a second device that does arithmetic."""
    monkeypatch.chdir(folder)
    seen = []

    def spy(config, *args, device=None, **options):
        seen.append(device or args[0].quant_conv.weight.device)
        raise AvarcError("far enough")

    monkeypatch.setattr(f"avarc_cli.train.{function}", spy)
    monkeypatch.setattr("avarc_cli.loading.pick_device", torch.device)
    assert main([*command, "--device", "meta"]) == 1
    assert seen == [torch.device("meta")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_pair_trained_on_the_gpu_classifies_on_the_cpu(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    vq, var, run = (str(tmp_path / name) for name in ("vq.safetensors", "var.safetensors", "run"))
    assert main([*TOKENIZER, "--out", vq, "--steps", "120", "--lr", "2e-3", "--device", "cuda"]) == 0
    options = ["--tokenizer", vq, "--out", var, "--steps", "80", "--lr", "3e-3", "--device", "cuda"]
    assert main([*VAR, *options]) == 0
    assert main(["classify", "img", "--model", var, "--tokenizer", vq, "--out", run, "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy"] == 1.0
