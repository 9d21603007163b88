"""add-class through the command line: what it learns, what it stores, and what it refuses."""

import json
import shutil
from functools import partial
from subprocess import PIPE

import numpy as np
import pytest
from conftest import load_golden
from killing import in_children
from programs import start

from avarc_cli.cli import main
from avarc_cli.incremental import adding, editing, fitting
from avarc_cli.work import run as work
from avarc_cli.work.locks import only_writer

FIT = ["--method", "lora", "--rank", "2", "--steps", "8", "--batch-size", "4"]
IMAGES = ["--variants", "1"]


def run(setting, *words, options=(*FIT, "--no-offset")):
    return main(["--quiet", "add-class", *setting.models, *options, *map(str, words)])


def listed(bank, capsys):
    capsys.readouterr()
    assert main(["classes", "list", "--bank", str(bank), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["classes"]


def classify(setting, out, *options):
    words = ["--quiet", "classify", setting.cache, *setting.models, "--out", out, *options]
    assert main([str(word) for word in words]) == 0
    lines = (out / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((out / "run.json").read_text())


def test_added_classes_are_candidates_and_old_likelihoods_are_the_same_bits(setting, tmp_path):
    with_bank, asked = classify(setting, tmp_path / "with", "--save-likelihood", "--bank", setting.bank)
    alone, _ = classify(setting, tmp_path / "alone", "--save-likelihood")
    for i in range(len(alone)):
        npz = [np.load(tmp_path / which / "likelihood" / f"{i}.npz") for which in ("with", "alone")]
        assert npz[0]["candidates"].tolist() == list(range(12)) and npz[1]["candidates"].tolist() == list(range(10))
        assert np.array_equal(npz[0]["log_likelihood"][:10], npz[1]["log_likelihood"])
    assert [r["label_id"] for r in with_bank[:12]] == ["amber"] * 6 + ["blue"] * 6
    assert with_bank[12]["label"] is None, "coral was not added"
    assert set(asked["bank"]) == {"amber", "blue"} and asked["offsets"]


def test_the_new_classes_win_their_own_images(setting, tmp_path):
    """With a generous training: 8 steps are too few for that, so this one gets 30."""
    bank = tmp_path / "bank"
    options = [*FIT, "--steps", "30", "--lr", "2e-2"]
    assert run(setting, "amber", setting.cache, "--bank", bank, options=options) == 0
    records, _ = classify(setting, tmp_path / "run", "--bank", bank)
    assert sum(r["prediction_id"] == "amber" for r in records[:6]) >= 5


def test_offsets_are_added_unless_switched_off(setting, bank, tmp_path):
    values = json.loads((bank / "bank.json").read_text())
    values["classes"][0]["offset"] = 1e6
    (bank / "bank.json").write_text(json.dumps(values))
    records, _ = classify(setting, tmp_path / "on", "--bank", bank)
    assert {r["prediction_id"] for r in records} == {"amber"}
    without, asked = classify(setting, tmp_path / "off", "--bank", bank, "--no-offset")
    assert {r["prediction_id"] for r in without} != {"amber"} and not asked["offsets"]
    by_class = [{b["name"]: b["score"] for b in r["best"]} for r in (records[0], without[0])]
    assert by_class[0]["amber"] == by_class[1].get("amber", by_class[0]["amber"]), "the likelihood itself has none"


def test_adding_a_third_class_leaves_the_others_files_and_entries(setting, bank, capsys):
    before, files = listed(bank, capsys), {p.name: p.read_bytes() for p in bank.glob("*.safetensors")}
    assert run(setting, "coral", setting.cache, "--bank", bank) == 0
    after = listed(bank, capsys)
    assert after[:2] == before and after[2]["name"] == "coral"
    assert all((bank / name).read_bytes() == data for name, data in files.items())
    assert not list(bank.glob("*.lock")) and not list(bank.glob("*.tmp"))


def test_processes_on_devices_add_the_same_classes_and_a_stop_keeps_their_fits(setting, tmp_path, monkeypatch, capsys):
    one, two, fits = tmp_path / "one", tmp_path / "two", tmp_path / "two.fits"
    for name in ("blue", "coral"):
        shutil.copytree(setting.colors / name, tmp_path / "colors" / name)
    words = [tmp_path / "colors", *IMAGES, "--bank"]
    assert run(setting, *words, one, options=FIT) == 0
    store, stored, asked = adding.store, [], []

    def stop_at_the_second(*args, **options):
        stored.append(args)
        if len(stored) == 2:
            raise KeyboardInterrupt
        return store(*args, **options)

    def compute(parts, task, numbers, **options):
        asked.append(sorted(numbers))
        return work.compute(parts, task, numbers, **options)

    monkeypatch.setattr(fitting, "compute", compute)
    with monkeypatch.context() as patched:
        patched.setattr(adding, "store", stop_at_the_second)
        assert run(setting, *words, two, "--devices", "cpu:2", options=FIT) == 130
    assert [entry["name"] for entry in listed(two, capsys)] == ["blue"] and fits.is_dir()
    assert run(setting, *words, two, "--devices", "cpu:2", "--skip-existing", options=FIT) == 0
    assert asked == [[0, 1], []], "nothing is fitted again"
    assert not fits.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["colors", "one", "two"]
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_fits_of_other_images_or_options_are_not_used(setting, tmp_path, monkeypatch):
    asked, words = [], [setting.cache, "--bank", tmp_path / "bank"]

    def stop(parts, task, numbers, **options):
        asked.append((parts.chunks.count, sorted(numbers)))
        for number in numbers:  # as a worker of Ray, which does not know the number
            [(_, result)] = task.run({0: parts.chunks.items_of(number)}, lambda steps: None)
            parts.save(number, result)
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "compute", stop)
    for options in ([], [], ["--seed", "1"], ["--steps", "9"]):
        assert run(setting, "coral", *words, *options, "--devices", "cpu:2") == 130
    assert asked == [(1, [0]), (1, []), (1, [0]), (1, [0])]
    assert run(setting, setting.cache, "--bank", tmp_path / "bank", "--devices", "cpu:2") == 130
    fits = [(tmp_path / "bank.fits" / f"00000{number}.npz").read_bytes() for number in range(4)]
    assert asked[-1] == (4, [0, 1, 2, 3]) and len(set(fits)) == 4
    assert not (tmp_path / "bank").exists() and (tmp_path / "bank.fits").is_dir()


@pytest.mark.parametrize("method", ["embedding", "adaln"])
def test_every_method_improves_on_the_class_that_it_starts_from(setting, tmp_path, capsys, method):
    bank, options = tmp_path / "bank", [*FIT, "--method", method, "--json"]
    capsys.readouterr()
    assert run(setting, "dark", setting.cache, "--bank", bank, options=options) == 0
    [added] = json.loads(capsys.readouterr().out)["added"]
    assert added["bits_per_token"][1] < added["bits_per_token"][0] and added["images"] == 6
    assert len(added["old_right"]) == len(added["new_right"]) == 2
    assert json.loads((bank / "bank.json").read_text())["classes"][0]["method"] == method


def test_the_same_command_gives_the_same_bytes(setting, tmp_path):
    for bank in (tmp_path / "a", tmp_path / "b"):
        assert run(setting, "coral", setting.cache, "--bank", bank) == 0
    files = [sorted((p.name, p.read_bytes()) for p in (tmp_path / b).iterdir()) for b in "ab"]
    assert files[0] == files[1]


def test_one_image_is_enough_and_is_warned_about(setting, tmp_path, capsys):
    words = ["add-class", *setting.models, *FIT, "--no-offset", *IMAGES, "--bank", str(tmp_path / "bank")]
    assert main([*words, "dark", str(setting.colors / "dark" / "0.png")]) == 0
    shown = capsys.readouterr()
    assert "class 'dark' has only 1 image (fewer than 5)" in shown.err
    assert "With fewer than 5 images none is held out" in " ".join(shown.out.split())


def test_images_come_from_a_cache_too(setting, tmp_path, capsys):
    assert run(setting, "coral", setting.cache, "--bank", tmp_path / "one") == 0
    assert listed(tmp_path / "one", capsys)[0]["images"] == 6, "of the 24 images of the cache those of its class"
    assert run(setting, setting.cache, "--steps", "1", "--bank", tmp_path / "all") == 0
    assert [c["name"] for c in listed(tmp_path / "all", capsys)] == ["amber", "blue", "coral", "dark"]


def test_an_unreadable_image_is_listed_and_the_class_added(setting, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for image in (setting.colors / "coral").iterdir():
        (folder / image.name).write_bytes(image.read_bytes())
    (folder / "3.png").write_bytes(b"\x89PNG nonsense")
    assert run(setting, "coral", folder, *IMAGES, "--bank", tmp_path / "bank") == 3
    assert "left out 3.png" in capsys.readouterr().err
    assert listed(tmp_path / "bank", capsys)[0]["images"] == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["3", "{colors}/coral"], "the class '3' exists already"),
        (["Amber", "{colors}/coral"], "the class 'Amber' exists already"),
        (["a,b", "{colors}/coral"], "cannot be a class name"),
        (["", "{colors}/coral"], "an argument is empty"),
        (["x\ny", "{colors}/coral"], "cannot be a class name"),
        (["coral", "{colors}/nowhere"], "does not exist"),
        (["coral", "{empty}"], "no images"),
        (["{colors}/coral"], "have no classes"),
        (["cerise", "{cache}"], "none of them 'cerise'"),
        (["coral", "{cache}", "--variants", "4", "--no-flip"], "no use for --flip, --variants"),
        (["coral", "{colors}/coral", "--method", "magic"], "no method 'magic'"),
        (["coral", "{colors}/coral", "--steps", "0"], "--steps"),
        (["coral", "{colors}/coral", "--lr", "nan"], "learning rate"),
        (["coral", "{colors}/coral", "--augment", "magic"], "no augmentation 'magic'"),
        (["{colors}"], "the class 'amber' exists already"),
    ],
)
def test_a_wrong_request_is_one_message_and_changes_nothing(setting, bank, tmp_path, capsys, words, says):
    (tmp_path / "empty").mkdir()
    places = {"colors": setting.colors, "cache": setting.cache, "empty": tmp_path / "empty"}
    before = (bank / "bank.json").read_bytes()
    filled = [word.format(**places) for word in words]
    assert main(["add-class", *filled, *setting.models, "--bank", str(bank)]) == 2
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err and "bug" not in err
    assert (bank / "bank.json").read_bytes() == before


def test_replace_and_skip_existing_decide_about_known_names(setting, bank, capsys):
    before = listed(bank, capsys)
    (bank / "bank.json.lock").touch()  # as a kill leaves it
    assert run(setting, setting.cache, "--bank", bank, "--skip-existing") == 0
    assert not (bank / "bank.json.lock").exists()
    after = listed(bank, capsys)
    assert after[:2] == before and [c["name"] for c in after] == ["amber", "blue", "coral", "dark"]
    assert run(setting, "amber", setting.colors / "coral", *IMAGES, "--bank", bank, "--replace") == 0
    replaced = listed(bank, capsys)
    assert [c["name"] for c in replaced] == ["blue", "coral", "dark", "amber"]
    assert replaced[:3] == after[1:] and replaced[3]["file"] != before[0]["file"]
    assert len(list(bank.glob("*.safetensors"))) == 4, "the replaced file is gone"
    assert run(setting, "amber", setting.colors / "coral", *IMAGES, "--bank", bank, "--replace") == 0
    assert listed(bank, capsys) == replaced and (bank / replaced[3]["file"]).is_file(), "the same again is kept"


def test_a_bank_of_another_model_is_refused_with_both_digests(setting, bank, tmp_path, capsys):
    import torch

    other = tmp_path / "other.pth"
    torch.save(load_golden("var_tiny_no_qk_norm").tensors("var"), other)
    models = ["--model", str(other), *setting.models[2:]]
    for words in (["add-class", "coral", setting.colors / "coral"], ["classify", setting.cache]):
        assert main([*map(str, words), *models, "--bank", str(bank)]) == 2
        err = capsys.readouterr().err
        theirs = json.loads((bank / "bank.json").read_text())["base"]["sha256"]
        assert "was made for another model" in err and theirs in err and "VAR.pth, not other.pth" in err


def test_two_processes_may_add_at_once(setting, tmp_path, capsys):
    bank = tmp_path / "bank"

    def add(name):
        assert run(setting, name, setting.cache, "--bank", bank) == 0

    assert in_children(partial(add, "amber"), partial(add, "coral")) == [0, 0]
    assert sorted(c["name"] for c in listed(bank, capsys)) == ["amber", "coral"]


def test_a_bank_that_stays_locked_is_one_message(setting, bank, monkeypatch, capsys):
    monkeypatch.setattr(editing, "WAIT", 0.1)
    with start("hold_lock", "file", bank / "bank.json", stdin=PIPE, stdout=PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert run(setting, "coral", setting.cache, "--bank", bank) == 1
        holder.stdin.close()
    assert "is being written by another process" in capsys.readouterr().err
    with only_writer(bank / "bank.json"):
        pass


def test_a_name_that_another_process_took_meanwhile_is_refused(setting, bank, monkeypatch, capsys):
    monkeypatch.setattr("avarc_cli.incremental.editing.check_names", lambda names, *rest: names)
    assert run(setting, "Blue", setting.cache, "--bank", bank) == 2
    assert "the class 'blue' exists already" in capsys.readouterr().err
