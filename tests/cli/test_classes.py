"""What a bank holds, and what becomes of a damaged one."""

import json

import pytest

from avarc_cli.cli import main


def classes(capsys, *words):
    capsys.readouterr()
    code = main(["classes", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return json.loads(out) if code == 0 else (code, err)


def test_list_and_show_report_how_a_class_was_fitted(bank, capsys):
    listed = classes(capsys, "list", "--bank", bank)
    assert [c["name"] for c in listed["classes"]] == ["amber", "blue"] and listed["base"]["name"] == "VAR.pth"
    shown = classes(capsys, "show", "AMBER", "--bank", bank)
    assert shown["images"] == 6 and shown["held out"] == 1 and shown["method"] == "lora" and shown["state"] == "whole"
    assert main(["classes", "list", "--bank", str(bank)]) == 0
    assert "2 classes added to VAR.pth" in capsys.readouterr().out


def test_remove_deletes_the_file_and_rename_keeps_it(bank, capsys):
    files = sorted(p.name for p in bank.glob("*.safetensors"))
    assert classes(capsys, "rename", "blue", "navy", "--bank", bank)["classes"] == ["amber", "navy"]
    assert sorted(p.name for p in bank.glob("*.safetensors")) == files
    assert classes(capsys, "remove", "amber", "--bank", bank)["classes"] == ["navy"]
    assert [p.name for p in bank.glob("*.safetensors")] == [f for f in files if f.startswith("blue")]


def test_a_renamed_class_scores_as_before(setting, bank, tmp_path, capsys):
    assert main(["classes", "rename", "blue", "navy", "--bank", str(bank)]) == 0
    found = []
    for name, folder in (("blue", setting.bank), ("navy", bank)):
        words = ["classify", setting.cache, *setting.models, "--classes", name, "--bank", folder, "--json"]
        capsys.readouterr()
        assert main([*map(str, words)]) == 0
        found.append(json.loads(capsys.readouterr().out)["metrics"]["bits_per_token"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "ambre"], "no class 'ambre'; did you mean amber?"),
        (["show", "zebra"], "its classes are: amber, blue"),
        (["remove", "amber", "zebra"], "no class 'zebra'"),
        (["rename", "zebra", "x"], "no class 'zebra'"),
        (["rename", "amber", "Blue"], "the class 'Blue' exists already"),
        (["rename", "amber", "a,b"], "cannot be a class name"),
    ],
)
def test_a_wrong_name_is_one_message_and_changes_nothing(bank, capsys, words, says):
    before = (bank / "bank.json").read_bytes()
    code, err = classes(capsys, *words, "--bank", bank)
    assert code == 2 and says in err and (bank / "bank.json").read_bytes() == before


def test_a_folder_that_is_not_a_bank_is_refused(tmp_path, setting, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "nowhere"):
        code, err = classes(capsys, "list", "--bank", folder)
        assert code == 2 and "is not a class bank" in err
    assert main(["add-class", "coral", str(setting.cache), *setting.models, "--bank", str(tmp_path)]) == 2
    assert "is not a class bank" in capsys.readouterr().err and sorted(tmp_path.iterdir()) == [tmp_path / "notes.txt"]


def test_a_damaged_addition_is_named_and_can_be_removed(setting, bank, capsys):
    file = next(bank.glob("amber-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    words = ["classify", setting.cache, *setting.models, "--limit", "2", "--bank", bank]
    assert main([*map(str, words)]) == 1
    err = capsys.readouterr().err
    assert f"'{file}' is corrupt or missing, so class 'amber' cannot be scored" in err
    assert "avarc classes remove 'amber'" in err
    states = {c["name"]: c["state"] for c in classes(capsys, "list", "--bank", bank)["classes"]}
    assert states == {"amber": "damaged", "blue": "whole"}
    assert classes(capsys, "remove", "amber", "--bank", bank)["classes"] == ["blue"]
    assert main([*map(str, words)]) == 0


def damage(values, how):
    first = values["classes"][0]
    if how == "offset":
        first["offset"] = float("nan")
    elif how == "path":
        first["file"] = "../elsewhere.safetensors"
    elif how == "twice":
        values["classes"].append(first)
    elif how == "field":
        del first["sha256"]
    elif how == "name":
        first["name"] = 7
    elif how == "format":
        values["format"] = 99
    return values


@pytest.mark.parametrize("how", ["offset", "path", "twice", "field", "name", "format", "cut", "list"])
def test_a_damaged_bank_file_is_named(bank, capsys, how):
    file = bank / "bank.json"
    values = json.loads(file.read_text())
    file.write_text({"cut": file.read_text()[:50], "list": "[]"}.get(how) or json.dumps(damage(values, how)))
    code, err = classes(capsys, "list", "--bank", bank)
    assert code == 1 and f"'{file}'" in err and "Traceback" not in err and "bug" not in err


def test_a_name_that_the_model_also_has_is_refused_when_loading(setting, bank, capsys):
    assert main(["classes", "rename", "blue", "3", "--bank", str(bank)]) == 0
    assert main(["classify", str(setting.cache), *setting.models, "--bank", str(bank)]) == 2
    assert "class '3' of the bank" in capsys.readouterr().err
