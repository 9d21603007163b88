"""avarc sample: pictures that a model draws of its classes."""

import json

import numpy as np
import pytest
from PIL import Image

from avarc_cli.cli import main
from avarc_cli.loading import load_model
from avarc_cli.sampling import Sampling, sample


def test_an_image_depends_on_its_class_and_number_only():
    model = load_model("digits")
    few, many = sample(model, ["3"], 2, Sampling(seed=1)), sample(model, ["8", "3"], 4, Sampling(seed=1))
    assert few.pictures.shape == (1, 2, 16, 16, 3) and few.pictures.dtype == np.uint8
    assert many.class_ids == (8, 3) and many.names == ("8", "3")
    assert np.array_equal(few.pictures[0], many.pictures[1, :2])
    assert not np.array_equal(few.pictures, sample(model, ["3"], 2, Sampling(seed=2)).pictures)


def test_without_a_strength_the_model_is_guided_as_it_is_meant_to_be():
    model = load_model("digits")
    drawn = [sample(model, ["3"], 1, Sampling(guidance=strength)).pictures for strength in (None, 1.5, 6.0)]
    assert np.array_equal(drawn[0], drawn[1])
    model.likelihood.default_guidance = 6.0
    assert np.array_equal(sample(model, ["3"], 1).pictures, drawn[2])


def test_images_drawn_of_a_class_are_classified_as_that_class(tmp_path):
    model = load_model("digits")
    drawn = sample(model, ["0,4,7"], 4)
    for class_id, row in zip(drawn.class_ids, drawn.pictures, strict=True):
        folder = tmp_path / "drawn" / str(class_id)
        folder.mkdir(parents=True)
        for n, picture in enumerate(row):
            Image.fromarray(picture).save(folder / f"{n}.png")
    assert main(["classify", str(tmp_path / "drawn"), "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy"] >= 0.75


def test_classes_can_be_given_names(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\n".join(f"digit {c}" for c in range(10)))
    named = ["--class-names", str(tmp_path / "names.txt"), "--count", "1", "--out", str(tmp_path / "x.png"), "--json"]
    assert main(["sample", "digit 3", *named]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["digit 3"]


def test_the_picture_has_one_row_per_class(tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert main(["sample", "3", "1", "--count", "5", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["3", "1"]
    with Image.open(out) as picture:
        assert picture.width > 2 * picture.height > 0
        assert len(picture.convert("L").getcolors(1 << 16)) > 20, "and it shows something"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["eleven", "--out", "x.png"], "not classes of"),
        (["3", "--out", "x.jpg"], "there is no format '.jpg'"),
        (["3", "--out", "missing/x.png"], "'missing' is not a folder"),
        (["3", "--out", "x.png", "--top-p", "1.5"], "top-p lies in [0, 1]"),
        (["3", "--out", "x.png", "--guidance", "-1"], "guidance lies in [0, 1000]"),
        (["3", "--out", "x.png", "--guidance", "nan"], "guidance lies in [0, 1000]"),
        (["3", "--out", "x.png", "--seed", "-1"], "--seed"),
        (["3", "--out", "x.png", "--model", "digits-vqvae"], "is a tokenizer"),
    ],
)
def test_wrong_requests_write_nothing(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", *options]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
