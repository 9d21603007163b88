"""--config: options from a TOML file, or from the run.json of a run that is repeated."""

import json
import shutil
from pathlib import Path

import pytest
import typer

from avarc_cli.cli import app, main
from avarc_cli.commands._config import RECORDED
from avarc_cli.zoo.local_files import ASSETS

DIGITS = (ASSETS / "digits/test").as_posix()
# Of classify: what a run.json does not record, because it decides where and how, not what.
NOT_RECORDED = {"out", "overwrite", "as_json", "config", "device", "yes", "workers", "allow_outside", "dry_run"}
NOT_RECORDED |= {"results_file", "shard", "devices", "engine"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Eight digits with one neighbour each."""
    out = tmp_path_factory.mktemp("cache") / "t.h5"
    assert main(["encode", DIGITS, "--sample", "8", "--samples", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture
def config(tmp_path):
    """Writes a TOML file and returns its path."""

    def write(text):
        path = tmp_path / "avarc.toml"
        path.write_text(text)
        return str(path)

    return write


def request(run):
    return json.loads((run / "run.json").read_text())


def test_options_come_from_the_file_and_those_of_the_command_line_win(cache, config, tmp_path):
    run = tmp_path / "run"
    written = config(f"data = '{cache}'\nplan = '2:5,4:1'\nsave_json = true\nbatch-size = 16\nout = '{run}'\nlimit = 5")
    assert main(["classify", "--config", written, "--limit", "2"]) == 0
    assert request(run)["plan"] == "2:5,4:1" and request(run)["tokens"]["limit"] == 2
    assert request(run)["save_json"] and len(list((run / "json").iterdir())) == 2


def test_a_table_is_for_its_command_alone(config, tmp_path, capsys):
    out = tmp_path / "t.h5"
    written = config(f"""
        model = "digits"
        data = ["{DIGITS}"]
        [encode]
        limit = 3
        out = "{out}"
        [classify]
        plan = "paper"
        [train.var]
        steps = 3
    """)
    assert main(["--json", "encode", "--config", written]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3


def test_a_table_wins_over_what_is_for_all_commands(config, capsys):
    written = config('bank = "nowhere"\n[classes]\nbank = "here"\n[classes.list]\nbank = "x/there"')
    assert main(["classes", "list", "--config", written]) == 2
    assert "there" in capsys.readouterr().err


def test_json_may_be_asked_for_in_the_file(config, capsys):
    assert main(["doctor", "--config", config("json = true")]) == 0
    assert json.loads(capsys.readouterr().out)


def test_every_command_reads_a_file(config, capsys):
    def leaves(command):
        inner = getattr(command, "commands", {}).values()
        return [leaf for each in inner for leaf in leaves(each)] if inner else [command]

    assert all("--config" in command.params[-1].opts for command in leaves(typer.main.get_command(app)))
    for words in ("explain", "train var", "cache info", "models show"):
        assert main([*words.split(), "--config", config("nonsense = 1")]) == 2
        assert f"{words} has no such option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modle = 'digits'", "did you mean model?"),
        ("[clasify]\nplan = 'paper'", "did you mean [classify]?"),
        ("save-json = 'yes'", "save-json is 'yes'\n  why: it must be true or false"),
        ("limit = 2.5", "limit is 2.5\n  why: it must be a whole number"),
        ("limit = true", "limit is True\n  why: it must be a whole number"),
        ("sigma = 'x'", "sigma is 'x'\n  why: it must be a number"),
        ("plan = [1]", "plan is [1]\n  why: it must be a text"),
        ("out = 3", "out is 3\n  why: it must be a path"),
        ("data = ['a', 3]", "data is 3\n  why: it must be a path"),
        ("save-json = true\nsave_json = true", "'save_json' twice"),
        ("config = 'x.toml'", "'config'"),
        ("limit = ", "is not a TOML file"),
        ("limit = 0", "--limit 0"),
        ("workers = -1", "--workers"),
        ("limit = 1\nsample = 1", "--limit and --sample"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(config, capsys, text, says):
    assert main(["classify", *(["x.h5"] if "data" not in text else []), "--config", config(text)]) == 2
    assert says in capsys.readouterr().err


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path, capsys):
    for path, says in ((tmp_path / "nowhere.toml", "does not exist"), (tmp_path, "is a folder")):
        assert main(["classify", "x.h5", "--config", str(path)]) == 2
        assert says in capsys.readouterr().err
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert main(["classify", "x.h5", "--config", str(tmp_path / "bytes.toml")]) == 2
    assert "is not a TOML file" in capsys.readouterr().err


def test_an_option_in_the_file_counts_as_given(cache, config, capsys):
    assert main(["classify", str(cache), "--config", config("sigma = 0.2")]) == 2
    assert "no use for --sigma" in capsys.readouterr().err


def test_a_run_is_repeated_from_its_run_json(cache, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--plan", "2:5,4:2,4:1:2", "--sample", "6", "--seed", "4", "--no-offset", "--save-json"]
    assert main(["classify", str(cache), *options, "--classes", "0,1,2,3,4,7", "--out", str(first)]) == 0
    recorded = request(first)["options"]
    assert recorded == {
        "data": [str(cache)],
        "plan": "2:5,4:2,4:1:2",
        "classes": "0,1,2,3,4,7",
        "sample": 6,
        "seed": 4,
        "offset": False,
        "save-json": True,
    }
    capsys.readouterr()
    assert main(["classify", "--config", str(first / "run.json"), "--out", str(second)]) == 0
    assert "--plan 2:5,4:2,4:1:2" in capsys.readouterr().err.replace("\n", " ")
    for name in ("predictions.jsonl", "run.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_run_of_images_is_repeated_too(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    image = f"{DIGITS}/3/0045.png"
    assert main(["classify", image, "--plan", "exhaustive:2", "--sigma", "0.3", "--out", str(first)]) == 0
    assert main(["classify", "--config", str(first / "run.json"), "--out", str(second)]) == 0
    assert (first / "predictions.jsonl").read_bytes() == (second / "predictions.jsonl").read_bytes()


def test_the_same_request_in_other_words_is_continued_and_keeps_its_words(cache, tmp_path):
    run = tmp_path / "run"
    assert main(["classify", str(cache), "--out", str(run)]) == 0
    before = (run / "run.json").read_bytes()
    assert main(["classify", str(cache), "--model", "digits", "--plan", "exhaustive", "--out", str(run)]) == 0
    assert (run / "run.json").read_bytes() == before
    (run / "predictions.jsonl").unlink()
    (run / "metrics.json").unlink()
    assert main(["classify", str(cache), "--model", "digits", "--plan", "exhaustive", "--out", str(run)]) == 0
    assert (run / "run.json").read_bytes() == before


def test_every_option_of_classify_is_recorded_or_left_out_on_purpose():
    params = {param.name for param in typer.main.get_command(app).commands["classify"].params}
    assert params == RECORDED | NOT_RECORDED and not RECORDED & NOT_RECORDED


@pytest.mark.parametrize(
    ("option", "value"), [("out", "elsewhere"), ("overwrite", True), ("yes", True), ("allow-outside", True), ("x", 1)]
)
def test_a_run_json_of_another_person_names_no_outputs_and_no_trust(
    cache, tmp_path, capsys, monkeypatch, option, value
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"options": {"data": [str(cache)], option: value}}))
    assert main(["classify", "--config", "run.json"]) == 2
    assert f"has the option '{option}'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_json_without_options_or_for_another_command_is_named(cache, tmp_path, capsys):
    path = tmp_path / "run.json"
    for text, says in (
        ("{}", "records no options"),
        ("[", "not valid JSON"),
        ('{"options": {"data": 3}}', "data is 3"),
    ):
        path.write_text(text)
        assert main(["classify", "--config", str(path)]) == 2
        assert says in capsys.readouterr().err
    path.write_text(json.dumps({"options": {"data": ["x.h5"]}}))
    assert main(["explain", "--config", str(path)]) == 2
    assert "only avarc classify repeats a run" in capsys.readouterr().err


def test_a_run_with_an_odd_name_is_repeated(cache, tmp_path):
    odd = tmp_path / "odd \udcff\n.h5"
    shutil.copy(cache, odd)
    assert main(["classify", str(odd), "--limit", "1", "--out", str(tmp_path / "a")]) == 0
    assert main(["classify", "--config", str(tmp_path / "a/run.json"), "--out", str(tmp_path / "b")]) == 0
    assert Path(request(tmp_path / "a")["options"]["data"][0]).name == "odd \\udcff\n.h5"
