"""The class-incremental protocol from the command line, on pictures of four colors."""

import json
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from programs import start
from terminal import too_long

from avarc_cli.cli import main
from avarc_cli.errors import Interrupted

OPTIONS = ["--base", "amber+blue", "--tasks", "coral,dark", "--steps", "12", "--batch-size", "8"]
SMALL = ["--base-steps", "40", "--base-depth", "1"]


def run(setting, out, *options, data=None, tokenizer=True):
    small = [] if "--model" in options else SMALL
    words = ["incremental", data or setting.cache, *OPTIONS, *small, "--out", out, *options]
    reads = setting.models[2:] if tokenizer else []
    return main([str(word) for word in [*words, *reads]])


@pytest.fixture(scope="module")
def finished(setting, tmp_path_factory):
    out = tmp_path_factory.mktemp("protocol") / "run"
    assert run(setting, out, "--baseline", "finetune") == 0
    return out


def test_results_are_a_matrix_and_measures_with_and_without_offsets(finished):
    results = json.loads((finished / "incremental.json").read_text())
    assert results["tasks"] == [["amber", "blue"], ["coral"], ["dark"]]
    for which in ("with_offset", "without_offset", "finetune"):
        m = results[which]
        matrix = np.array(m["matrix"], dtype=float)
        assert matrix.shape == (3, 3) and np.isnan(matrix[np.triu_indices(3, 1)]).all()
        assert m["average_accuracy"] == pytest.approx(matrix[2].mean())
        assert m["backward_transfer"] == pytest.approx(((matrix[2] - matrix.diagonal())[:2]).mean())
        assert set(m["per_class"]) == {"amber", "blue", "coral", "dark"}
    assert (finished / "incremental.png").read_bytes().startswith(b"\x89PNG")


def test_processes_on_devices_give_the_same_scores(setting, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "scores.npz").unlink()
    assert run(setting, out, "--devices", "cpu:2") == 0
    assert (out / "scores.npz").read_bytes() == (finished / "scores.npz").read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in finished.iterdir()}


@pytest.mark.parametrize("width", [60, 80])
def test_the_tables_fit_the_terminal(setting, finished, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(setting, finished, "--baseline", "finetune") == 0
    printed = capsys.readouterr()
    assert "backward transfer" in " ".join(printed.out.split()) and not too_long(printed.out + printed.err, width)


def test_the_matrix_follows_from_the_saved_scores(finished):
    results = json.loads((finished / "incremental.json").read_text())
    with np.load(finished / "scores.npz") as npz:
        fair, labels = npz["scores"] + npz["offsets"], npz["labels"]
        assert npz["offsets"][:2].tolist() == [0, 0] and npz["classes"].tolist() == ["amber", "blue", "coral", "dark"]
    last = [(fair.argmax(1) == labels)[np.isin(labels, task)].mean() for task in ([0, 1], [2], [3])]
    assert results["with_offset"]["matrix"][2] == pytest.approx(last)
    first = (fair[:, :2].argmax(1) == labels)[labels < 2].mean()
    assert results["with_offset"]["matrix"][0][0] == pytest.approx(first)


def test_a_finished_run_is_shown_again_and_another_request_is_refused(setting, finished, capsys):
    before = {p: p.read_bytes() for p in finished.rglob("*.safetensors")}
    assert run(setting, finished, "--baseline", "finetune", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tasks"][1] == ["coral"]
    assert {p: p.read_bytes() for p in finished.rglob("*.safetensors")} == before
    assert run(setting, finished, "--seed", "1") == 2
    assert "holds another run" in capsys.readouterr().err


def test_a_stopped_run_goes_on_to_the_same_result(setting, finished, tmp_path, monkeypatch):
    import avarc_cli.incremental.adding as adding

    fit, calls = adding.fit_class, []

    def dies_at_the_second(*args):
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted("training was interrupted")
        return fit(*args)

    monkeypatch.setattr(adding, "fit_class", dies_at_the_second)
    assert run(setting, tmp_path / "run", "--baseline", "finetune") == 130
    monkeypatch.undo()
    assert run(setting, tmp_path / "run", "--baseline", "finetune") == 0
    assert (tmp_path / "run" / "incremental.json").read_bytes() == (finished / "incremental.json").read_bytes()
    banks = [json.loads((run / "bank" / "bank.json").read_text())["classes"] for run in (tmp_path / "run", finished)]
    assert banks[0] == banks[1], "with the digests of what was learnt"


def test_base_shape_options_are_refused_with_a_given_model(setting, tmp_path, capsys):
    assert run(setting, tmp_path / "a", "--model", "x.safetensors", "--base-steps", "9", "--base-depth", "2") == 2
    assert "no use for --base-steps, --base-depth with --model" in capsys.readouterr().err


def test_a_given_model_must_know_the_base_classes_and_no_later_ones(setting, finished, tmp_path, capsys):
    own = ["--model", finished / "base.safetensors", "--steps", "2"]
    assert run(setting, tmp_path / "a", *own) == 0
    words = ["incremental", setting.cache, "--base", "amber", "--tasks", "blue", "--out", tmp_path / "b", *own]
    assert main([str(word) for word in [*words, *setting.models[2:]]]) == 2
    assert "already knows the later class 'blue'" in capsys.readouterr().err
    words = ["incremental", setting.cache, "--base", "coral", "--tasks", "dark", "--out", tmp_path / "c", *own]
    assert main([str(word) for word in [*words, *setting.models[2:]]]) == 2
    assert "does not know the base class 'coral'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tasks", "coral,drak"], "no class 'drak'"),
        (["--baseline", "magic"], "no baseline 'magic'"),
        (["--base-width", "65"], "multiple of 64"),
        (["--method", "magic"], "no method 'magic'"),
        (["--model", "nonsense"], "nonsense"),
    ],
)
def test_a_wrong_request_is_one_message(setting, tmp_path, capsys, options, says):
    assert run(setting, tmp_path / "run", *options) == 2
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err and "bug" not in err


def test_two_processes_do_not_work_in_one_folder(setting, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    holder = start(
        "hold_lock", "file", tmp_path / "run" / "run", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert run(setting, tmp_path / "run") == 1
        assert "is being written by another process" in capsys.readouterr().err
    finally:
        holder.kill()
        holder.communicate()


def test_a_folder_with_other_things_is_left_alone(setting, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert run(setting, tmp_path) == 2
    assert "is not empty, and not a run" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1


def test_an_unreadable_image_is_listed_and_the_rest_is_done(setting, tmp_path, capsys):
    for color in ("amber", "blue", "coral", "dark"):
        (tmp_path / "data" / color).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "data" / color / f"{i}.png").symlink_to(setting.colors / color / f"{i}.png")
    (tmp_path / "data" / "dark" / "bad.png").write_bytes(b"nonsense")
    options = ["--variants", "0", "--steps", "2", "--base-steps", "2"]
    assert run(setting, tmp_path / "run", *options, data=tmp_path / "data") == 3
    assert "left out dark/bad.png" in capsys.readouterr().err
    assert (tmp_path / "run" / "incremental.json").exists()


def test_folders_named_train_and_test_are_the_split(setting, tmp_path):
    for part, images in (("train", range(4)), ("test", range(4, 6))):
        for color in ("amber", "blue", "coral", "dark"):
            (tmp_path / "data" / part / color).mkdir(parents=True)
            for i in images:
                (tmp_path / "data" / part / color / f"{i}.png").symlink_to(setting.colors / color / f"{i}.png")
    options = ["--variants", "0", "--steps", "2", "--base-steps", "2"]
    assert run(setting, tmp_path / "run", *options, data=tmp_path / "data") == 0
    with np.load(tmp_path / "run" / "scores.npz") as npz:
        assert npz["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_cache_that_changed_is_not_learned_from(setting, tmp_path, capsys):
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(setting.cache.read_bytes())
    with h5py.File(damaged, "r+") as file:
        file["tokens"][1] ^= 1
    assert run(setting, tmp_path / "run", data=damaged) == 1
    assert "/tokens of rows 0 to" in capsys.readouterr().err
