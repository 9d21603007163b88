"""`avarc train classifier`: from a folder of images to a folder that --model accepts everywhere."""

import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from killing import in_child
from small_datasets import halves

from avarc_cli import Options, load_classifier
from avarc_cli.cli import main
from avarc_cli.errors import CheckpointError
from avarc_cli.own_model import decisions, speed
from avarc_cli.own_model import folder as folders
from avarc_cli.zoo import model_folder

SHORT = ["--time", "0.0001", "--image-size", "8", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def three_steps():
    """Of each training: the least, which no machine makes more of in so short a time; and two to measure the speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "STEPS", 2)
        patch.setattr(decisions, "LEAST", 3)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """96 images of two classes, of which 52 are held out below."""
    return halves(tmp_path_factory.mktemp("photos"), 96)


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """The folder of a model; tests do not change it."""
    out = tmp_path_factory.mktemp("made") / "mine"
    assert main(["train", "classifier", str(photos), *SHORT, "--hold-out", "0.55", "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(made, tmp_path):
    """A copy of it, to be damaged or moved."""
    return shutil.copytree(made, tmp_path / "mine")


def test_the_folder_says_what_it_is_and_how_well_it_does(made):
    facts = json.loads((made / "model.json").read_text())
    assert {path.name for path in made.iterdir()} == {*folders.OWN}
    assert [path.name for path in made.parent.iterdir()] == ["mine"], "the working folder and the lock are gone"
    held_out, classes = facts["held_out"], facts["classes"]
    assert [(each["name"], each["training_images"], each["held_out_images"]) for each in classes] == [
        ("left", 22, 26),
        ("right", 22, 26),
    ]
    assert held_out["images"] == 52 and held_out["correct"] / 52 == held_out["accuracy"]
    assert sum(pair["images"] for pair in held_out["confused"]) == 52 - held_out["correct"]
    assert facts["tuned"]["agreement"] == 0.98 and facts["made"]["short"]
    card = (made / "README.md").read_text()
    low, high = held_out["accuracy_95"]
    assert f"{held_out['accuracy']:.1%} ({held_out['correct']} of 52; 95 % interval {low:.1%} to {high:.1%})" in card
    assert "| left | 22 | 26 |" in card and "--model mine/ --plan auto" in card and "more `--time`" in card


def test_a_process_classifies_with_the_folder_and_its_plan(made, photos, tmp_path):
    words = ["classify", str(photos), "--model", f"{made}/", "--plan", "auto", "--out", "run"]
    subprocess.run([sys.executable, "-m", "avarc_cli", *words], cwd=tmp_path, check=True, capture_output=True)
    protocol = json.loads((tmp_path / "run" / "run.json").read_text())
    assert protocol["model"]["name"] == "mine" and protocol["tuned_plan"]["guarantee"]["agreement"] == 0.98
    assert protocol["places"]["model"]["path"] == str(made / "generator.safetensors")
    assert protocol["places"]["tokenizer"]["path"] == str(made / "tokenizer.safetensors")


def test_what_the_card_says_to_do_works(made, photos, tmp_path, capsys):
    image = str(next(photos.rglob("*.png")))
    model = ["--model", str(made)]
    assert main(["explain", image, *model, "--out", str(tmp_path / "why.png")]) == 0
    assert "avarc sample left --model" in (made / "README.md").read_text()
    assert main(["sample", "left", *model, "--out", str(tmp_path / "drawn.png")]) == 0
    capsys.readouterr()
    assert main(["models", "show", str(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "llamagen"
    assert main(["models", "show", str(made)]) == 0
    assert "2: left, right" in capsys.readouterr().out
    assert load_classifier(str(made), Options(plan="auto")).classify(image).name in ("left", "right")


def test_a_folder_can_have_a_name(made, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AVARC_HOME", str(tmp_path))
    assert main(["models", "add", "own", str(made)]) == 0
    image = str(next(photos.rglob("*.png")))
    assert main(["classify", image, "--model", "own", "--plan", "auto"]) == 0


def test_a_run_finds_a_model_that_was_moved(copied, photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["classify", str(photos), "--model", str(copied), "--limit", "2", "--out", str(run)]) == 0
    moved = copied.rename(tmp_path / "moved")
    export = ["export", str(run), "--out", str(tmp_path / "x.npz")]
    assert main(export) == 2
    assert "the model of" in capsys.readouterr().err
    assert main([*export, "--model", str(moved)]) == 0, "its tokenizer is not looked for where it was"


def test_classes_are_known_before_the_weights_are_read(made, photos, capsys):
    assert main(["classify", str(photos), "--model", str(made), "--classes", "lefft"]) == 2
    assert "left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "model.json").write_text("{"), "is damaged"),
        (lambda path: (path / "model.json").write_text('{"format": 99}'), "its format is 99"),
        (lambda path: (path / "tokenizer.safetensors").unlink(), "there is no file tokenizer.safetensors"),
        (lambda path: (path / "model.json").unlink(), "there is no model in the folder"),
    ],
    ids=["cut off", "of a later version", "without a file", "of something else"],
)
@pytest.mark.parametrize("command", ["classify", "show"])
def test_a_damaged_or_foreign_folder_is_named(copied, photos, capsys, damage, message, command):
    damage(copied)
    shown = ["models", "show", str(copied)]
    assert main(["classify", str(photos), "--model", str(copied)] if command == "classify" else shown) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_folder_leads_to_no_file_outside(copied):
    facts = json.loads((copied / "model.json").read_text())
    (copied / "model.json").write_text(json.dumps({**facts, "generator": "../other.safetensors"}))
    with pytest.raises(CheckpointError, match="is damaged"):
        model_folder.find(copied)


def test_what_would_be_destroyed_is_kept(copied, photos, capsys):
    words = ["train", "classifier", str(photos), *SHORT, "--out", str(copied)]
    assert main(words) == 2 and "add --overwrite" in capsys.readouterr().err
    (copied / "notes.txt").write_text("mine")
    assert main([*words, "--overwrite"]) == 2 and "notes.txt" in capsys.readouterr().err
    assert main(["train", "classifier", str(photos), *SHORT, "--out", str(photos), "--overwrite"]) == 2
    assert "left, right" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["training", "replaced"])
def test_folders_of_the_user_beside_it_are_kept(copied, photos, tmp_path, capsys, suffix):
    theirs = shutil.copytree(photos, tmp_path / f"mine.{suffix}")
    words = ["train", "classifier", str(theirs), *SHORT, "--out", str(copied), "--overwrite"]
    for extra in ([], ["--dry-run"]):
        assert main([*words, *extra]) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert f"mine.{suffix}' is not a folder of avarc's" in message and "it holds left, right" in message
    assert sum(path.is_file() for path in theirs.rglob("*")) == 96 and model_folder.find(copied)
    shutil.rmtree(theirs)
    shutil.copytree(copied, theirs)  # a model of theirs
    assert main(words) == 2 and model_folder.find(theirs)
    shutil.rmtree(theirs)
    theirs.symlink_to(photos)
    assert main(words) == 2 and "it is not a folder" in capsys.readouterr().err


def test_a_kill_while_the_working_folder_is_deleted_leaves_no_weights_for_another(photos, tmp_path, monkeypatch):
    words = ["train", "classifier", str(photos), *SHORT, "--out", str(tmp_path / "mine")]

    def begin_and_die(path):  # files go in any order
        (path / "request.json").unlink(missing_ok=True)
        die()

    with monkeypatch.context() as patch:
        patch.setattr(folders, "shutil", SimpleNamespace(copyfile=shutil.copyfile, rmtree=begin_and_die))
        assert in_child(lambda: main(words)) == -signal.SIGKILL
    assert (tmp_path / "mine.training" / "request.json").exists()
    assert main([*words, "--seed", "1", "--overwrite"]) == 2, "it is that training's until it is continued or deleted"


def test_a_dry_run_writes_nothing(photos, tmp_path, capsys):
    words = ["train", "classifier", str(photos), *SHORT, "--out", str(tmp_path / "x"), "--dry-run", "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["training_images"], facts["held_out_images"]) == (86, 10)
    assert facts["decisions"]["generator_steps"] == 3
    assert not list(tmp_path.iterdir())


def test_small_classes_and_broken_images_are_reported(tmp_path, capsys):
    halves(tmp_path / "img", 12)
    for path in sorted((tmp_path / "img" / "left").glob("*.png"))[1:]:
        path.unlink()
    (tmp_path / "img" / "right" / "x.png").write_bytes(b"no image")
    out = tmp_path / "mine"
    assert main(["train", "classifier", str(tmp_path / "img"), *SHORT, "--hold-out", "0", "--out", str(out)]) == 3
    message = " ".join(capsys.readouterr().err.split())
    assert "left out right/x.png" in message and "left has one image: it is trained on" in message
    facts = json.loads((out / "model.json").read_text())
    assert facts["held_out"] is None and facts["plan"] is None and facts["data"]["unreadable"] == 1
    assert "Unknown: no image was held out" in (out / "README.md").read_text()


def test_a_folder_without_classes_is_refused(photos, tmp_path, capsys):
    assert main(["train", "classifier", str(photos / "left"), "--out", str(tmp_path / "x")]) == 2
    assert "no classes to tell apart" in capsys.readouterr().err


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_training_is_continued_where_it_stopped(photos, tmp_path, monkeypatch, capsys):
    out, work = tmp_path / "mine", tmp_path / "mine.training"
    words = ["train", "classifier", str(photos), *SHORT, "--out", str(out)]
    trained = set()
    of_make = [f"avarc_cli.own_model.make.{name}" for name in ("train_generator", "_evaluate", "_tune")]
    for place in (*of_make, "avarc_cli.storage.os.rename"):  # the last puts OUT in its place
        with monkeypatch.context() as patch:
            patch.setattr(place, die)
            assert in_child(lambda: main(words)) == -signal.SIGKILL
        assert not out.exists()
        kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*.safetensors")}
        assert trained <= kept.items(), "what was trained is not trained again"
        trained |= kept.items()
    assert {name for name, _ in trained} == {folders.TOKENIZER, folders.GENERATOR}
    (work / "request.json").rename(tmp_path / "kept")
    (work / "request.json").write_text('{"asked": {}, "decided": {}}')
    assert main(words) == 1 and "request.json' is damaged" in capsys.readouterr().err
    (tmp_path / "kept").replace(work / "request.json")
    other = main([*words, "--seed", "1"])
    assert other == 2 and "seed: 0 there, 1 here" in " ".join(capsys.readouterr().err.split())
    assert main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    assert json.loads((out / "model.json").read_text())["made"]["took_minutes"] is None, "it was not measured in one go"


def test_a_killed_replacement_is_undone_and_then_finished(copied, photos, monkeypatch, capsys):
    words = ["train", "classifier", str(photos), *SHORT, "--out", str(copied)]
    finish, renames = folders.finish, [os.rename]

    def killed(*args, **kwargs):  # OUT is moved away; the new folder does not get its name
        monkeypatch.setattr(os, "rename", lambda old, new: (renames.pop() if renames else die)(old, new))
        finish(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "finish", killed)
        assert in_child(lambda: main([*words, "--overwrite"])) == -signal.SIGKILL
    assert not copied.exists()
    assert main(words) == 2 and "add --overwrite" in capsys.readouterr().err
    assert model_folder.find(copied).facts["held_out"]["images"] == 52, "the old one is back"
    assert main([*words, "--overwrite"]) == 0
    assert model_folder.find(copied).facts["held_out"]["images"] == 10
    assert sorted(path.name for path in copied.parent.iterdir()) == ["mine"]
