"""`avarc train tokenizer`, `vq`, `var`, `llamagen`, `randar`: what is trained loads and classifies; what is refused."""

import json

import pytest
import torch
from small_datasets import halves

from avarc_cli.cli import main
from avarc_cli.errors import AvarcError
from avarc_cli.loading import ModelSpec, load_model, load_tokenizer

SHAPE = ["--image-size", "8", "--patch-nums", "1,2,4", "--vocab", "16", "--channels", "4", "--width", "32"]
SMALL = ["--multipliers", "1,1", "--blocks", "1", "--batch-size", "8", "--augment", "none"]
CODES = ["--image-size", "8", "--vocab", "16", "--channels", "4", "--width", "32"]
VQ = "llamagen-vq.safetensors"
TINY = ["--depth", "1", "--width", "64", "--batch-size", "8", "--augment", "none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with training images in img/, where the tests run and write weights."""
    folder = tmp_path_factory.mktemp("halves")
    halves(folder / "img")
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """Paths of a tokenizer and a VAR that were trained through the command line."""
    images, vq, var = str(folder / "img"), folder / "vq.safetensors", folder / "var.safetensors"
    assert main(["train", "tokenizer", images, *SHAPE, *SMALL, "--steps", "30", "--lr", "4e-3", "--out", str(vq)]) == 0
    options = [*TINY, "--steps", "40", "--lr", "5e-3"]
    assert main(["train", "var", images, "--tokenizer", str(vq), *options, "--out", str(var)]) == 0
    return vq, var


@pytest.fixture(scope="module")
def llamagen(folder):
    """The same of a LlamaGen and its tokenizer."""
    images, vq, gpt = str(folder / "img"), folder / "llamagen-vq.safetensors", folder / "llamagen.safetensors"
    assert main(["train", "vq", images, *CODES, *SMALL, "--steps", "50", "--lr", "4e-3", "--out", str(vq)]) == 0
    options = [*TINY, "--heads", "2", "--steps", "40", "--lr", "5e-3"]
    assert main(["train", "llamagen", images, "--tokenizer", str(vq), *options, "--out", str(gpt)]) == 0
    return vq, gpt


@pytest.fixture(scope="module")
def randar(folder, llamagen):
    """The same of a RandAR of that tokenizer's tokens."""
    images, vq, gpt = str(folder / "img"), llamagen[0], folder / "randar.safetensors"
    options = [*TINY, "--heads", "2", "--steps", "80", "--lr", "3e-3"]
    assert main(["train", "randar", images, "--tokenizer", str(vq), *options, "--out", str(gpt)]) == 0
    return vq, gpt


@pytest.mark.parametrize("family", ["trained", "llamagen", "randar"])
def test_a_trained_pair_classifies_what_it_was_trained_on(folder, family, request, tmp_path, capsys):
    vq, generator = request.getfixturevalue(family)
    models = ["--model", str(generator), "--tokenizer", str(vq)]
    assert main(["classify", str(folder / "img"), *models, "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["accuracy"] == 1.0 and set(metrics["per_class"]) == {"left", "right"}
    assert not list(folder.glob("*.ckpt")), "a finished training leaves no checkpoint"


def test_files_that_are_not_used_are_reported_before_training(tmp_path, capsys):
    (halves(tmp_path / "img", 8) / "left" / "photo.heic").write_bytes(b"x")
    options = [*SHAPE, *SMALL, "--steps", "1", "--out", str(tmp_path / "vq.safetensors")]
    assert main(["train", "tokenizer", str(tmp_path / "img"), *options]) == 0
    assert "files that are not images: 1 .heic" in capsys.readouterr().err


def test_saved_files_carry_scales_preprocessing_and_class_names(trained):
    vq, var = trained
    tokenizer = load_tokenizer(str(vq))
    assert tokenizer.layout.sides == (1, 2, 4) and tokenizer.preprocess == "fit" and tokenizer.image_size == 8
    model = load_model(ModelSpec(str(var), str(vq)))
    assert model.classes.ids == ("left", "right") and model.likelihood.unconditional == 2


@pytest.mark.parametrize("family", ["llamagen", "randar"])
def test_a_file_tells_heads_and_grid_which_its_tensors_do_not(family, request):
    vq, gpt = request.getfixturevalue(family)
    tokenizer, model = load_tokenizer(str(vq)), load_model(ModelSpec(str(gpt), str(vq)))
    assert str(tokenizer.layout) == "4x4 grid" and tokenizer.image_size == 8
    assert model.likelihood.config.heads == 2 and model.likelihood.segment_ends == (4, 8, 12, 16)
    assert not model.inferred and model.classes.ids == ("left", "right") and model.family == family


@pytest.mark.parametrize("command", ["var", "cca"])
def test_images_outside_the_folder_of_a_table_are_trained_on_if_asked(folder, trained, tmp_path, capsys, command):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs avarc[data]")
    (vq, var), images = trained, sorted((folder / "img").rglob("*.png"))
    columns = {
        "image": [{"bytes": None, "path": str(path)} for path in images],
        "label": [path.parent.name for path in images],
    }
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), tmp_path / "a.parquet")
    models = ["--tokenizer", str(vq), *TINY] if command == "var" else ["--model", str(var), "--tokenizer", str(vq)]
    words = ["train", command, str(tmp_path / "a.parquet"), *models, "--steps", "1", "--augment", "none"]
    assert main([*words, "--out", str(tmp_path / "x.st")]) == 1
    assert "--allow-outside" in capsys.readouterr().err
    validated = ["--allow-outside", "--validation", str(tmp_path / "a.parquet")]
    assert main([*words, "--out", str(tmp_path / "x.st"), *validated]) == 0


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["train", "tokenizer", "img", *SMALL, "--image-size", "9", "--out", "x"], "do not fit 9-pixel"),
        (["train", "tokenizer", "img", *SHAPE, *SMALL, "--augment", "nonsense", "--out", "x"], "nonsense"),
        (["train", "tokenizer", "img", *SHAPE, *SMALL, "--out", "nowhere/x"], "nowhere"),
        (["train", "var", "img/left", "--tokenizer", "vq.safetensors", "--out", "x"], "without a class"),
        (["train", "var", "img", "--tokenizer", "vq.safetensors", "--width", "65", "--out", "x"], "multiple of 64"),
        (["train", "var", "img", "--tokenizer", "nonsense", "--out", "x"], "nonsense"),
        (["train", "vq", "img", *CODES, *SMALL, "--image-size", "9", "--out", "x"], "do not fit 9-pixel"),
        (["train", "llamagen", "img", "--tokenizer", "vq.safetensors", "--out", "x"], "one square grid"),
        (["train", "llamagen", "img", "--tokenizer", VQ, "--width", "66", "--out", "x"], "cannot have 1 head"),
        (["train", "llamagen", "img", "--tokenizer", VQ, "--heads", "3", "--out", "x"], "cannot have 3 heads"),
        (["train", "var", "img", "--tokenizer", VQ, "--out", "x"], "needs a multi-scale VQ-VAE"),
    ],
)
def test_a_wrong_request_is_one_message(folder, trained, llamagen, monkeypatch, capsys, command, says):
    monkeypatch.chdir(folder)
    assert main(command) in {1, 2}
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
    ("command", "function"), [(TOKENIZER, "tokenizer.train_tokenizer"), (VAR, "generator.train_generator")]
)
def test_the_device_reaches_the_training(folder, trained, tmp_path, monkeypatch, command, function):
    """As far as it can be seen without a second device that does arithmetic."""
    monkeypatch.chdir(folder)
    seen = []

    def spy(images, out, *args, device=None, **options):
        seen.append(device or args[0].device)
        raise AvarcError("far enough")

    monkeypatch.setattr(f"avarc_cli.train.{function}", spy)
    for module in ("loading", "devices"):
        monkeypatch.setattr(f"avarc_cli.{module}.pick_device", torch.device)
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
