"""avarc sample into an array, or into a flat folder: what evaluators of FID read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avarc_cli.cli import main
from avarc_cli.loading import load_model
from avarc_cli.sampling import Sampling, sample

REQUEST = ["sample", "3", "8", "--per-class", "3", "--batch-size", "2", "--seed", "1"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def draw(tmp_path, monkeypatch, capsys):
    """Draws three pictures of two classes in batches of two; gives the exit code, and what was said."""
    monkeypatch.chdir(tmp_path)

    def do(*options):
        capsys.readouterr()
        code = main([*REQUEST, *options])
        return code, " ".join("".join(capsys.readouterr()).split())

    return do


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder with the array of `draw`, and the request."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["--quiet", *REQUEST, "--out", str(folder / "x.npz")]) == 0
    return contents(folder)


@pytest.fixture(scope="module")
def pictures():
    """Those of `sample`, class after class."""
    return sample(load_model("digits"), ["3", "8"], 3, Sampling(seed=1)).pictures.reshape(6, 16, 16, 3)


def test_the_array_has_the_pictures_class_after_class(whole, pictures):
    assert set(whole) == {"x.npz", "x.npz.json"}
    with np.load(io.BytesIO(whole["x.npz"])) as file:
        assert file.files == ["arr_0"]
        array = file["arr_0"]
    assert array.dtype == np.uint8 and array.shape == (6, 16, 16, 3)
    assert np.abs(array.astype(int) - pictures).max() <= 1, "up to rounding"
    record = json.loads(whole["x.npz.json"])
    assert record["classes"] == ["3", "8"] and record["count"] == 3 and len(record["model"]) == 64
    assert record["sampling"] == {"guidance": 1.5, "top_k": 0, "top_p": 0.0, "seed": 1}


def test_shards_meet_in_one_array(draw, whole, tmp_path):
    assert "1 of 3 chunks, shard 1/2 is done; run the others" in draw("--shard", "1/2", "--out", "x.npz")[1]
    assert not (tmp_path / "x.npz").exists()
    assert "x.npz: 3 pictures of each of 2 classes" in draw("--shard", "2/2", "--out", "x.npz")[1]
    assert contents(tmp_path) == whole
    assert "was complete already" in draw("--out", "x.npz")[1] and contents(tmp_path) == whole


def test_a_flat_folder_numbers_the_pictures_through(draw, whole, tmp_path):
    assert draw("--flat", "--out", "flat")[0] == 0
    files = contents(tmp_path / "flat")
    assert set(files) == {f"{n:06d}.png" for n in range(6)} | {"samples.json"}
    with np.load(io.BytesIO(whole["x.npz"])) as array:
        for n, pixels in enumerate(array["arr_0"]):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(files[f"{n:06d}.png"]))), pixels)
    code, said = draw("--out", "flat")
    assert code == 2 and "flat: true there, null here" in said.replace("True", "true").replace("None", "null")
    assert draw("--out", "flat", "--overwrite")[0] == 0 and set(contents(tmp_path / "flat")) >= {"3/000.png"}
    assert not (tmp_path / "flat" / "000000.png").exists()


def test_a_folder_of_numbered_pictures_is_not_avarcs_without_its_record(draw, tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "000000.png").write_bytes(b"a photo")
    for options in ([], ["--overwrite"]):
        code, said = draw("--flat", "--out", "flat", *options)
        assert code == 2 and "it holds 000000.png" in said
    assert contents(tmp_path) == {"flat/000000.png": b"a photo"}


def test_an_array_of_another_request_is_replaced_only_with_overwrite(draw, whole, tmp_path):
    assert main(["sample", "3", "--per-class", "1", "--out", "x.npz"]) == 0
    before = contents(tmp_path)
    code, said = draw("--out", "x.npz")
    assert code == 2 and "'x.npz' holds the pictures of another request" in said and contents(tmp_path) == before
    assert draw("--out", "x.npz", "--overwrite")[0] == 0 and contents(tmp_path) == whole


def test_an_array_that_was_changed_is_noticed(draw, whole, tmp_path):
    assert draw("--out", "x.npz")[0] == 0
    (tmp_path / "x.npz").write_bytes(whole["x.npz"][:1000])
    code, said = draw("--out", "x.npz")
    assert code == 2 and "'x.npz' was complete, and has changed" in said
    assert draw("--out", "x.npz", "--overwrite")[0] == 0 and contents(tmp_path) == whole


@pytest.mark.parametrize("name", ["x.npz", "x.npz.json", "x.npz.parts/mine.txt", "x.npz.parts/request.json"])
def test_what_is_not_avarcs_is_never_touched(draw, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"power": 2}')
    before = contents(tmp_path)
    for options in ([], ["--overwrite"]):
        code, said = draw("--out", "x.npz", *options)
        assert code != 0 and ("x.npz" in said and "Traceback" not in said)
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--out", "x.npz", "--per-class", "0"], "--per-class"),
        (["--out", "x.npz", "--flat"], "no use for --flat with 'x.npz'"),
        (["--out", "x.png", "--flat"], "no use for --flat with 'x.png'"),
        (["--out", "none/x.npz"], "'none' is not a folder"),
        (["--out", "x.npz", "--shard", "1/2", "--overwrite"], "--overwrite does not go with --shard"),
        (["--out", "x.npz", "--preset", "paper"], "no settings are published for 'digits'"),
        (["--out", "x.npz", "--preset", "best"], "no preset 'best'"),
        (["--out", "x.npz", "--preset", "var-d16", "--top-k", "5"], "no use for --top-k with --preset"),
        (["--out", "x.npz", "--preset", "rar-b"], "is of the family rar, digits of var"),
        (["--out", "x.npz", "--model", "digits-titok", "--preset", "maskgit-s128"], "steps: 64 published, 8 here"),
        (["--out", "x.npz", "--model", "digits-randar", "--preset", "randar-l-256"], "steps: 88 published, 22 here"),
        (["--out", "x.npz", "--model", "digits-llamagen", "--more-smooth"], "--more-smooth is not for digits-llamagen"),
    ],
)
def test_wrong_requests_write_nothing(tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "3", *options]) == 2
    assert says in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


def test_without_classes_all_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in {"x": [], "all": ["all"]}.items():
        assert main(["sample", *words, "--per-class", "1", "--batch-size", "10", "--out", f"{name}.npz"]) == 0
    assert json.loads((tmp_path / "x.npz.json").read_text())["classes"] == [str(c) for c in range(10)]
    for suffix in (".npz", ".npz.json"):
        assert (tmp_path / f"x{suffix}").read_bytes() == (tmp_path / f"all{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "without CLASSES all of the model's are drawn, but only if --per-class says"),
        (["--per-class", "2", "--model", "digits-captions"], "which captions is digits-captions to draw?"),
    ],
)
def test_without_classes_and_their_number_nothing_is_drawn(tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", *options, "--out", "x.npz"]) == 2
    assert says in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


def test_more_pictures_than_can_be_kept_track_of_are_refused_at_once(draw):
    code, said = draw("--out", "x.npz", "--per-class", "100000000000")
    assert code == 2 and "at most 10,000,000" in said


def test_the_preset_of_a_file_is_named_and_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "3", "--per-class", "2", "--preset", "var-d20", "--out", "x.npz"]) == 0
    sampling = json.loads((tmp_path / "x.npz.json").read_text())["sampling"]
    assert (sampling["guidance"], sampling["top_k"], sampling["top_p"]) == (1.5, 900, 0.96)
    assert sampling["preset"]["model"] == "var-d20" and sampling["preset"]["rounding"] == "truncate"


def test_smoother_pictures_are_other_ones_and_say_so(draw, whole, tmp_path):
    assert draw("--more-smooth", "--out", "x.npz")[0] == 0
    record = json.loads((tmp_path / "x.npz.json").read_text())
    assert record["sampling"]["more_smooth"] is True
    smooth, plain = (np.load(io.BytesIO(each))["arr_0"] for each in (contents(tmp_path)["x.npz"], whole["x.npz"]))
    assert not np.array_equal(smooth, plain)
