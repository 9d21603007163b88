"""classify --out, run again: changed images, other threads, other spellings, and --overwrite."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avarc_cli.cli import main
from avarc_cli.errors import Interrupted
from avarc_cli.results import scorer as scorer_module
from avarc_cli.zoo.local_files import ASSETS

DIGITS = ASSETS / "digits" / "test"


def digit(label: int, number: int = 0) -> bytes:
    return sorted((DIGITS / str(label)).glob("*.png"))[number].read_bytes()


@pytest.fixture
def images(tmp_path) -> Path:
    """Four digits: 7, 7, 1, 0."""
    folder = tmp_path / "img"
    folder.mkdir()
    for name, data in zip("abcd", (digit(7), digit(7, 1), digit(1), digit(0)), strict=True):
        (folder / f"{name}.png").write_bytes(data)
    return folder


@pytest.fixture
def classify(tmp_path, capsys):
    """Runs `avarc classify DATA --out RUN` with the digits, image by image; gives exit code and stderr."""

    def classify(data: Path | str, *options: str, out: Path | str = tmp_path / "run") -> tuple[int, str]:
        capsys.readouterr()
        code = main(["classify", str(data), "--batch-size", "10", "--out", str(out), *options])
        return code, capsys.readouterr().err

    return classify


def predictions(run: Path) -> list[int]:
    return [json.loads(line)["prediction"] for line in (run / "predictions.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_changed_images_are_classified_again_and_the_others_are_not(images, classify, tmp_path, monkeypatch):
    assert classify(images, "--save-likelihood")[0] == 0
    assert predictions(tmp_path / "run") == [7, 7, 1, 0]
    (images / "b.png").write_bytes(digit(4))
    scored = []
    score = scorer_module.score_group
    monkeypatch.setattr(scorer_module, "score_group", lambda *args: scored.append(1) or score(*args))
    code, said = classify(images, "--save-likelihood")
    assert code == 0 and "1 image changed since; encoding it again" in said
    assert len(scored) == 1 and predictions(tmp_path / "run") == [7, 4, 1, 0]
    classify(images, "--save-likelihood", out=tmp_path / "fresh")
    old, new = files(tmp_path / "run"), files(tmp_path / "fresh")
    assert old.keys() == new.keys()
    for name in ("run.json", "predictions.jsonl", "tokens.h5", "likelihood/1.npz"):
        assert old[name] == new[name], name
    metrics = json.loads(old["metrics.json"])
    assert metrics["images"] == 4 and metrics["seconds_per_image"] > 0


def test_a_repaired_image_is_no_longer_left_out_and_a_broken_one_is(images, classify, tmp_path):
    (images / "d.png").write_bytes(digit(0)[:60])
    assert classify(images, "--save-json")[0] == 3
    (images / "d.png").write_bytes(digit(0))
    assert classify(images, "--save-json")[0] == 0
    assert predictions(tmp_path / "run") == [7, 7, 1, 0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["tokens"]["images"] == 4
    (images / "a.png").write_bytes(b"no image")
    assert classify(images, "--save-json")[0] == 3
    assert predictions(tmp_path / "run") == [7, 1, 0]
    assert sorted(p.name for p in (tmp_path / "run" / "json").iterdir()) == ["0.json", "1.json", "2.json"]
    assert classify(images, "--save-json")[0] == 3


def test_a_cache_that_was_encoded_again_gives_no_stale_predictions(images, classify, tmp_path):
    cache = tmp_path / "t.h5"
    assert main(["--quiet", "encode", str(images), "--out", str(cache)]) == 0
    assert classify(cache)[0] == 0
    (images / "c.png").write_bytes(digit(5))
    assert main(["--quiet", "encode", str(images), "--out", str(cache)]) == 0
    code, said = classify(cache)
    assert code == 0 and "1 image has other tokens" in said
    assert predictions(tmp_path / "run") == [7, 7, 5, 0]


def interrupt(monkeypatch, after: int) -> None:
    """Stop the next run after this many groups, as Ctrl-C does."""
    score, left = scorer_module.score_group, [after]

    def stop(*args):
        left[0] -= 1
        if left[0] < 0:
            monkeypatch.setattr(scorer_module, "score_group", score)
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(scorer_module, "score_group", stop)


def test_an_interrupted_run_whose_images_changed_is_finished_with_the_new_ones(images, classify, tmp_path, monkeypatch):
    interrupt(monkeypatch, 3)
    assert classify(images)[0] == Interrupted.exit_code
    (images / "a.png").write_bytes(digit(3))
    assert classify(images)[0] == 0
    assert predictions(tmp_path / "run") == [3, 7, 1, 0]
    classify(images, out=tmp_path / "fresh")
    for name in ("run.json", "predictions.jsonl", "tokens.h5"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name


@pytest.mark.parametrize("finished", [True, False])
def test_other_threads_continue_a_run_and_an_unfinished_one_says_so(images, classify, tmp_path, monkeypatch, finished):
    if not finished:
        interrupt(monkeypatch, 2)
    classify(images)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        code, said = classify(images)
    finally:
        torch.set_num_threads(before)
    assert code == 0 and predictions(tmp_path / "run") == [7, 7, 1, 0]
    note = f"continuing with {before + 1} threads what was begun with {before}: last digits may differ by rounding"
    assert (note in " ".join(said.split())) is not finished


@pytest.mark.parametrize("spelling", ["relative", "link"])
def test_another_spelling_of_data_and_out_continues_the_run(images, classify, tmp_path, monkeypatch, spelling):
    interrupt(monkeypatch, 2)
    classify(images)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked-img").symlink_to("img")
    (tmp_path / "linked-run").symlink_to("run")
    data, out = ("img", "run") if spelling == "relative" else (tmp_path / "linked-img", tmp_path / "linked-run")
    code, _ = classify(data, out=out)
    assert code == 0 and predictions(tmp_path / "run") == [7, 7, 1, 0]


def test_a_link_to_the_model_and_the_tokenizer_continues_the_run(tiny_files, models, tmp_path, capsys):
    command = ["--quiet", "classify", str(tiny_files / "img"), "--preprocess", "none", "--out", str(tmp_path / "run")]
    assert main([*command, *models]) == 0
    links = []
    for number, value in enumerate(models):
        links.append(value)
        if Path(value).is_file():
            links[-1] = str(tmp_path / f"link-{number}{Path(value).suffix}")
            os.symlink(value, links[-1])
    assert links != models and main([*command, *links]) == 0


def test_other_images_of_the_same_names_are_another_run(images, classify, tmp_path):
    assert classify(images)[0] == 0
    other = tmp_path / "other"
    shutil.copytree(images, other)
    for name in "abc":
        (other / f"{name}.png").write_bytes(digit(9))
    before = files(tmp_path / "run")
    code, said = classify(other)
    assert code == 1 and "made of other images" in said and "--overwrite" in said
    assert files(tmp_path / "run") == before
    assert classify(other, "--overwrite")[0] == 0
    assert predictions(tmp_path / "run") == [9, 9, 9, 0]


@pytest.mark.parametrize("options", [("--plan", "2:5,5:1"), ("--seed", "5", "--plan", "5:1:2"), ("--classes", "0,1,7")])
def test_overwrite_replaces_a_run_of_another_request_and_nothing_else(images, classify, tmp_path, options):
    run = tmp_path / "run"
    assert classify(images, "--save-likelihood", "--save-json")[0] == 0
    (run / "notes.txt").write_text("mine")
    (run / "json" / "mine.json").write_text("{}")
    before = files(run)
    assert classify(images, *options)[0] in {1, 2}
    assert files(run) == before
    assert classify(images, *options, "--overwrite")[0] == 0
    classify(images, *options, out=tmp_path / "fresh")
    now, fresh = files(run), files(tmp_path / "fresh")
    assert now.pop("notes.txt") == b"mine" and now.pop("json/mine.json") == b"{}"
    assert now.keys() == fresh.keys()
    for name in ("run.json", "predictions.jsonl", "tokens.h5"):
        assert now[name] == fresh[name], name


def test_overwrite_keeps_a_run_of_the_same_request(images, classify, tmp_path):
    assert classify(images)[0] == 0
    before = files(tmp_path / "run")
    assert classify(images, "--overwrite")[0] == 0
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("run_json", [None, '{"experiment": 5}', "{"])
def test_overwrite_leaves_a_folder_alone_that_is_no_run(images, classify, tmp_path, run_json):
    folder = tmp_path / "mine"
    (folder / "json").mkdir(parents=True)
    (folder / "json" / "1.json").write_text("{}")
    (folder / "predictions.jsonl").write_text("{}\n")
    if run_json is not None:
        (folder / "run.json").write_text(run_json)
    before = files(folder)
    assert classify(images, "--overwrite", out=folder)[0] in {1, 2}
    assert files(folder) == before


def test_overwrite_without_out_is_a_usage_error(images, capsys):
    assert main(["classify", str(images), "--overwrite"]) == 2
    assert "nothing to overwrite" in capsys.readouterr().err


def test_runs_of_earlier_versions_are_continued_and_it_is_said_what_they_do_not_record(images, classify, tmp_path):
    run = tmp_path / "run"
    assert classify(images)[0] == 0
    asked = json.loads((run / "run.json").read_text())
    asked["tokens"]["preprocess"] = asked["tokens"]["preprocess"].partition(";")[0]
    del asked["tokens"]["limit"]
    (run / "run.json").write_text(json.dumps(asked))
    old = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for record in old:
        del record["tokens_digest"]
    (run / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in old))
    before = files(run)
    code, said = classify(images)
    assert code == 0 and files(run) == before and "cannot be detected" in said


def test_limits_of_a_cache_are_different_runs(images, classify, tmp_path):
    cache = tmp_path / "t.h5"
    assert main(["--quiet", "encode", str(images), "--out", str(cache)]) == 0
    assert classify(cache, "--limit", "2")[0] == 0
    code, said = classify(cache, "--limit", "3")
    assert code == 2 and "tokens.limit: 2 there, 3 here" in said
    assert classify(cache)[0] == 2


def test_reference_decoding_is_recorded_and_another_run(classify, tmp_path):
    folder = tmp_path / "img"
    folder.mkdir()
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:12, 4:12] = 255
    Image.fromarray(pixels).save(folder / "a.png")
    assert classify(folder)[0] == 0
    code, said = classify(folder, "--preprocess", "reference")
    assert code == 1 and "as PIL converts to RGB here" in " ".join(said.split())
    assert classify(folder, "--preprocess", "fit,reference", out=tmp_path / "reference")[0] == 0
    recorded = json.loads((tmp_path / "reference" / "run.json").read_text())["tokens"]["preprocess"]
    assert recorded == "fit 16->16 lanczos; as PIL converts to RGB"
    own, reference = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("run", "reference"))
    assert json.loads(own)["tokens_digest"] != json.loads(reference)["tokens_digest"]


def test_explain_and_add_class_take_reference_decoding_too(images, tmp_path):
    page, bank = tmp_path / "page.html", tmp_path / "bank"
    assert main(["--quiet", "explain", str(images / "a.png"), "--preprocess", "reference", "--out", str(page)]) == 0
    add = ["add-class", "new", str(images), "--steps", "1", "--variants", "0", "--preprocess", "fit,reference"]
    assert main(["--quiet", *add, "--bank", str(bank)]) == 0
