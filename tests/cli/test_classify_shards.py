"""classify --shard and --engine, and runs merge."""

from __future__ import annotations

import json

import pytest

from avarc_cli.cli import main
from avarc_cli.zoo.local_files import ASSETS

DIGITS = ASSETS / "digits" / "test"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "t.h5"
    assert main(["--quiet", "encode", str(DIGITS), "--limit", "3", "--out", str(path)]) == 0
    return path


@pytest.fixture
def shard(cache, capsys):
    """Classifies a shard of three images, one by one; gives what stdout says."""

    def do(number, out, *options):
        capsys.readouterr()
        words = ["classify", str(cache), "--batch-size", "10", "--out", str(out), "--shard", number]
        assert main([*words, *options]) == 0
        return " ".join(capsys.readouterr().out.split())

    return do


def test_shards_meet_in_one_folder_or_are_joined(shard, tmp_path, capsys):
    whole = shard("1/1", tmp_path / "whole")
    assert "predictions.jsonl" in whole
    assert "1 of 3 chunks, shard 1/2 is done; run the others" in shard("1/2", tmp_path / "run")
    assert shard("2/2", tmp_path / "run").startswith("image class")
    assert json.loads(shard("3/4", tmp_path / "3", "--json"))["all_chunks"] == 3
    assert "shard 1/4 has nothing to classify, since there are only 3 chunks" in shard("1/4", tmp_path / "1")
    for number in (2, 4):
        shard(f"{number}/4", tmp_path / str(number))
    folders = [str(tmp_path / str(number)) for number in (1, 2, 3, 4)]
    assert main(["--json", "runs", "merge", *folders, "--out", str(tmp_path / "joined")]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["images"] == 3
    for name in ("run.json", "predictions.jsonl"):
        expected = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "joined" / name).read_bytes() == expected
    assert main(["runs", "merge", *folders[:2], "--out", str(tmp_path / "less")]) == 2
    assert "a shard is missing, or not finished" in capsys.readouterr().err and not (tmp_path / "less").exists()
    assert main(["report", folders[3]]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_processes_on_devices_make_the_same_run(cache, tmp_path, capsys):
    words = ["classify", str(cache), "--batch-size", "10", "--save-json", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    assert main([*words, str(tmp_path / "two"), "--devices", "cpu:2"]) == 0
    for name in ("run.json", "predictions.jsonl", "predictions.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert sorted(path.name for path in (tmp_path / "two" / "json").iterdir()) == ["0.json", "1.json", "2.json"]
    capsys.readouterr()
    assert main([*words, str(tmp_path / "three"), "--devices", "cpu:2", "--device", "cpu"]) == 2
    assert "--device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--devices", "cpu:2"], "--devices needs a run folder"),
        (["--shard", "3/2", "--out", "run"], "there is no shard 3/2"),
        (["--shard", "x", "--out", "run"], "cannot read --shard 'x'"),
        (["--shard", "1/2"], "nowhere to save shard 1/2"),
        (["--shard", "1/2", "--out", "run", "--overwrite"], "--overwrite does not go with --shard"),
        (["--engine", "grid", "--out", "run"], "no engine 'grid'"),
        (["--engine", "ray"], "--engine ray needs a run folder"),
    ],
)
def test_wrong_requests_do_nothing(cache, tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    assert main(["classify", str(cache), *options]) == 2
    assert says in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("--shard", "1/2"), ("--engine", "ray"), ("--devices", "cpu:2")])
def test_images_are_encoded_before_they_are_divided(tmp_path, capsys, option, value):
    assert main(["classify", str(DIGITS), option, value, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"error: {option}" in said and "divides a token cache" in said and not list(tmp_path.iterdir())
