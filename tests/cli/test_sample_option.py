"""--sample N draws images evenly over the classes; --limit N says so when it sees a few classes only."""

import json
from collections import Counter

import h5py
import pytest

from avarc_cli.cli import main
from avarc_cli.zoo.local_files import ASSETS

DIGITS = str(ASSETS / "digits/test")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The test digits, 36 of each."""
    out = tmp_path_factory.mktemp("cache") / "t.h5"
    assert main(["encode", DIGITS, "--out", str(out)]) == 0
    return out


def records(run):
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def names(cache):
    with h5py.File(cache) as file:
        return [name.decode() for name in file["paths"][:]]


def test_a_sample_of_a_cache_is_even_and_recorded(cache, tmp_path, capsys):
    run, command = tmp_path / "run", ["classify", str(cache), "--sample", "25", "--seed", "3"]
    assert main([*command, "--out", str(run)]) == 0
    drawn = records(run)
    assert sorted(Counter(record["label_id"] for record in drawn).values()) == [2] * 5 + [3] * 5
    everything = names(cache)
    positions = [everything.index(record["path"]) for record in drawn]
    assert positions == sorted(positions) and [record["index"] for record in drawn] == list(range(25))
    tokens = json.loads((run / "run.json").read_text())["tokens"]
    assert tokens["sample"] == {"images": 25, "seed": 3} and tokens["limit"] is None
    capsys.readouterr()
    assert main([*command[:-1], "4", "--out", str(run)]) == 2
    assert "sample" in capsys.readouterr().err
    assert main([*command, "--out", str(run)]) == 0


def test_a_sampled_run_is_explained_from_its_cache(cache, tmp_path):
    run = tmp_path / "run"
    assert main(["classify", str(cache), "--sample", "10", "--seed", "5", "--out", str(run)]) == 0
    page = tmp_path / "report.html"
    assert main(["report", str(run), "--tokens", str(cache), "--hardest", "2", "--out", str(page)]) == 0
    hardest = max(records(run), key=lambda record: -record["posterior"] if record["label_rank"] == 0 else 1)
    assert hardest["path"] in page.read_text()


def test_a_sample_of_images_is_that_of_their_cache(cache, tmp_path):
    few = tmp_path / "few.h5"
    assert main(["encode", DIGITS, "--sample", "10", "--seed", "2", "--out", str(few)]) == 0
    assert main(["classify", str(cache), "--sample", "10", "--seed", "2", "--out", str(tmp_path / "run")]) == 0
    assert names(few) == [record["path"] for record in records(tmp_path / "run")]


def test_export_and_tune_draw_too(cache, tmp_path):
    npz, plan = tmp_path / "x.npz", tmp_path / "plan.json"
    assert main(["export", str(cache), "--sample", "10", "--out", str(npz)]) == 0
    assert main(["tune", str(cache), "--sample", "30", "--agreement", "0.8", "--out", str(plan)]) == 0
    assert json.loads(plan.read_text())["calibration"]["images"] == 30


def test_images_without_labels_are_drawn_alike(cache, tmp_path, capsys):
    folder = tmp_path / "flat"
    folder.mkdir()
    for path in sorted((ASSETS / "digits/test/3").iterdir())[:8]:
        (folder / path.name).write_bytes(path.read_bytes())
    assert main(["encode", str(folder), "--sample", "3", "--out", str(tmp_path / "t.h5")]) == 0
    assert "have no labels" in capsys.readouterr().err
    assert len(names(tmp_path / "t.h5")) == 3


def test_a_limit_that_sees_few_classes_says_so(cache, tmp_path, capsys):
    out = str(tmp_path / "t.h5")
    says = "the first 40 images are of 2 of 10 classes; --sample 40 draws evenly"
    assert main(["encode", DIGITS, "--limit", "40", "--out", out]) == 0
    assert says in capsys.readouterr().err
    assert main(["--quiet", "export", str(cache), "--limit", "40", "--out", str(tmp_path / "x.npz")]) == 0
    assert says in capsys.readouterr().err
    assert main(["classify", str(cache), "--limit", "1"]) == 0  # 1 of 10 classes, as it must be
    assert "draws evenly" not in capsys.readouterr().err


def test_limit_and_sample_exclude_each_other(cache, capsys):
    for command in ("classify", "export", "tune"):
        assert main([command, str(cache), "--limit", "3", "--sample", "3", "--out", "x.npz"]) == 2
        assert "--limit and --sample" in capsys.readouterr().err


def test_a_seed_without_a_sample_has_no_use_for_a_cache(cache, capsys):
    assert main(["classify", str(cache), "--seed", "3"]) == 2
    assert "--seed" in capsys.readouterr().err
