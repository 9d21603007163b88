"""avarc evaluate on models that are included: cells, resuming, what is missing, and the tables."""

import csv
import json
import shutil
from contextlib import contextmanager

import pytest
from small_datasets import halves

from avarc_cli.cli import main
from avarc_cli.evaluation import protocol as protocols
from avarc_cli.evaluation.evaluate import INCLUDED, Setting, evaluate
from avarc_cli.evaluation.write_table import write_tables
from avarc_cli.results.metrics import wilson
from avarc_cli.zoo.card import AssetFile
from avarc_cli.zoo.cards import model_cards

SMALL = """
title = "small | <table>"

[[columns]]
name = "digits"
title = "digits 0 and 1"
included = "digits"
subset = "two.txt"
classes = "0,1,2"

[[columns]]
name = "mine"
data = "mine"

[[rows]]
name = "exhaustive"
title = "VAR"
model = "digits"
published = { digits = 97.3, mine = 12.25 }
source = "somebody's | page"

[[rows]]
name = "staged"
model = "digits"
plan = "2:2,5:1"

[[rows]]
name = "absent"
model = "var-d16"

[[references]]
title = "another method"
published = { digits = 98 }
source = "elsewhere"
"""


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocol")
    (folder / "two.txt").write_text("0\n1\n")
    (folder / "small.toml").write_text(SMALL)
    return folder / "small.toml"


def run(protocol, out, data, *words):
    return main(["-q", "evaluate", str(protocol), "--out", str(out), "--data", str(data), "--per-class", "3", *words])


@pytest.fixture(scope="module")
def done(protocol, tmp_path_factory):
    """An evaluation whose second column lacks its images, and whose third row lacks its weights."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    assert run(protocol, out, protocol.parent) == 3
    return out


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("predictions.jsonl")}


def test_a_cell_is_a_run_and_rows_share_tokens(done):
    assert {str(path.parent) for path in files(done / "cells")} == {"exhaustive/digits", "staged/digits"}
    assert len(list((done / "tokens").glob("*.h5"))) == 1
    assert main(["compare", *[str(done / "cells" / row / "digits") for row in ("exhaustive", "staged")]]) == 0


def test_the_table_holds_what_the_runs_measured(done):
    rows = list(csv.DictReader((done / "table.csv").open()))
    assert [(row["row"], row["column"]) for row in rows] == [
        *[(row, column) for row in ("exhaustive", "staged", "absent") for column in ("digits", "mine")],
        ("another method", "digits"),
    ]
    metrics = json.loads((done / "cells/staged/digits/metrics.json").read_text())
    assert rows[2]["images"] == "6" and float(rows[2]["accuracy"]) == metrics["accuracy"]
    low, high = wilson(metrics["correct"], 6)
    assert (float(rows[2]["accuracy_low"]), float(rows[2]["accuracy_high"])) == (low, high)
    assert float(rows[2]["tokens_per_image"]) == metrics["tokens_scored_per_image"]
    assert rows[0]["published"] == "0.973" and rows[0]["source"] == "somebody's | page"
    assert rows[6]["published"] == "0.98" and rows[6]["accuracy"] == ""


def test_what_is_missing_is_said_with_how_to_get_it(done, protocol, capsys):
    assert (
        main(["evaluate", str(protocol), "--out", str(done), "--data", str(protocol.parent), "--per-class", "3"]) == 3
    )
    message = " ".join(capsys.readouterr().err.split())
    assert f"not run: exhaustive/mine, staged/mine, absent/mine: there is no '{protocol.parent / 'mine'}'" in message
    assert (
        "not run: absent/digits, absent/mine: the weights of 'var-d16'" in message
        and "avarc download var-d16" in message
    )
    rows = list(csv.DictReader((done / "table.csv").open()))
    assert "avarc download var-d16" in rows[4]["not_run"] and not rows[0]["not_run"]


def test_markdown_has_a_table_for_each_column(done):
    text = (done / "table.md").read_text()
    assert text.startswith("# small \\| \\<table\\>\n")
    section = text.split("## ")[1]
    assert section.startswith("digits 0 and 1\n")
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) == 6 and all(line.replace("\\|", "").count("|") == 8 for line in lines)
    assert lines[2].startswith("| VAR | 100.00 | 61.0 to 100.0 | 97.3 | 6 |")
    assert lines[4].startswith("| absent | not run |") and lines[5].startswith("| another method |  |  | 98.0 |")
    assert "- VAR: somebody's \\| page" in text and "## Not run" in text


def test_the_page_is_escaped_and_needs_no_other_file(done):
    text = (done / "table.html").read_text()
    assert "small | &lt;table&gt;" in text and '<th scope="row">VAR</th>' in text
    assert "src=" not in text and "http" not in text


def test_finished_cells_are_kept_and_missing_ones_are_added(protocol, done, tmp_path):
    out = shutil.copytree(done, tmp_path / "out")
    before = files(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("predictions.jsonl")}
    for i, side in enumerate(("left", "right")):  # images of no digit: they have no label that counts
        (tmp_path / "mine" / str(i)).mkdir(parents=True)
        for path in halves(tmp_path / "halves").glob(f"{side}/*.png"):
            path.rename(tmp_path / "mine" / str(i) / path.name)
    assert run(protocol, out, tmp_path) == 3  # the weights are still missing
    after = files(out)
    assert before.items() <= after.items() and len(after) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


class Killed(BaseException):
    """Ends a process where it stands."""


def test_a_killed_evaluation_is_continued_to_the_same_result(protocol, done, tmp_path):
    """It ends after the first group of images of the second row; the first row's cell is not made again."""
    asked = protocols.read(protocol)

    class Bar:
        def __init__(self, dies):
            self.dies = dies

        def update(self, finished, total=None, note="", /):
            if self.dies and finished:
                raise Killed

    @contextmanager
    def progress(description, total):
        yield Bar(description == "staged: classifying digits")

    setting = Setting(out=tmp_path / "out", data=protocol.parent, device="cpu", per_class=3, progress=progress)
    with pytest.raises(Killed):
        evaluate(asked, setting)
    first = tmp_path / "out/cells/exhaustive/digits/predictions.jsonl"
    made = first.stat().st_mtime_ns
    assert not (tmp_path / "out/cells/staged/digits/predictions.jsonl").exists()
    assert (tmp_path / "out/cells/staged/digits/parts/request.json").exists()
    cells = evaluate(asked, Setting(out=tmp_path / "out", data=protocol.parent, device="cpu", per_class=3))
    assert first.stat().st_mtime_ns == made
    for name in ("exhaustive", "staged"):
        path = f"cells/{name}/digits/predictions.jsonl"
        assert (tmp_path / "out" / path).read_bytes() == (done / path).read_bytes()
    assert [path.name for path in write_tables(asked, cells, tmp_path)] == ["table.csv", "table.md", "table.html"]


def test_a_sample_is_that_of_classify_and_counts_for_the_tokens(tmp_path, capsys):
    column = 'title = "t"\n[[columns]]\nname = "some"\nincluded = "digits"\n'
    row = '[[rows]]\nname = "var"\nmodel = "digits"\nplan = "2:2,3:1"\n'
    for name, keys in (("a", "sample = 7\nseed = 5\n"), ("b", "limit = 7\n")):
        (tmp_path / f"{name}.toml").write_text(column + keys + row)
        assert main(["evaluate", str(tmp_path / f"{name}.toml"), "--out", str(tmp_path / name)]) == 0
    words = ["--sample", "7", "--seed", "5", "--plan", "2:2,3:1", "--out", str(tmp_path / "run")]
    assert main(["classify", str(INCLUDED["digits"]), *words]) == 0
    lines = tmp_path / "a/cells/var/some/predictions.jsonl"
    assert lines.read_bytes() == (tmp_path / "run/predictions.jsonl").read_bytes()
    assert [json.loads(line)["label"] for line in lines.read_text().splitlines()] != [0] * 7
    assert next((tmp_path / "a/tokens").iterdir()).name != next((tmp_path / "b/tokens").iterdir()).name


def test_a_row_may_be_a_cascade_of_precisions(tmp_path):
    columns = 'title = "t"\n[[columns]]\nname = "some"\nincluded = "digits"\nlimit = 8\n'
    row = '[[rows]]\nname = "{}"\nmodel = "digits"\nprecision = "{}"\n'
    (tmp_path / "two.toml").write_text(columns + row.format("plain", "fp32") + row.format("two", "bf16+fp32"))
    assert main(["evaluate", str(tmp_path / "two.toml"), "--out", str(tmp_path / "out")]) == 0
    files = [tmp_path / f"out/cells/{name}/some/predictions.jsonl" for name in ("plain", "two")]
    plain, cascade = [[json.loads(line)["prediction"] for line in path.read_text().splitlines()] for path in files]
    assert len(plain) == 8
    assert plain == cascade


@pytest.mark.parametrize("name", ["a" * 3000, "a\\u0000b"])
def test_a_name_that_no_file_can_have_is_missing(tmp_path, name, capsys):
    asked = SMALL.replace('data = "mine"', f'data = "{name}"').replace('included = "digits"', 'data = "none"')
    (tmp_path / "p.toml").write_text(asked.replace('subset = "two.txt"\n', ""))
    assert run(tmp_path / "p.toml", tmp_path / "out", tmp_path) == 3
    assert "there is no" in capsys.readouterr().err


def test_unreadable_images_are_counted(tmp_path, capsys):
    halves(tmp_path / "mine", 4)
    (tmp_path / "mine" / "left" / "broken.png").write_bytes(b"no image")
    (tmp_path / "p.toml").write_text(SMALL.replace('included = "digits"\nsubset = "two.txt"', 'data = "mine"'))
    words = ["--json", "evaluate", str(tmp_path / "p.toml"), "--out", str(tmp_path / "out"), "--data", str(tmp_path)]
    assert main(words) == 3
    message = capsys.readouterr()
    assert "exhaustive/mine: left out 1 unreadable image" in message.err
    first = json.loads(message.out)["cells"][0]
    assert (first["images"], first["unreadable"], first["accuracy"]) == (4, 1, None)  # no label is a digit


def test_another_request_in_the_same_folder_leaves_its_runs_alone(protocol, done, capsys):
    before = files(done)
    words = ["evaluate", str(protocol), "--out", str(done), "--data", str(protocol.parent), "--per-class", "2"]
    assert main(words) == 3
    assert "holds another run" in capsys.readouterr().err
    assert before.items() <= files(done).items()


def test_a_folder_of_something_else_is_refused(protocol, tmp_path, capsys):
    (tmp_path / "photo.png").touch()
    assert run(protocol, tmp_path, protocol.parent) == 2
    assert "not an evaluation" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_the_digits_are_evaluated_without_data(tmp_path, capsys, monkeypatch):
    """Every included model, on one image of each class."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["evaluate", "digits", "--out", str(tmp_path / "out"), "--per-class", "1"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    protocol = protocols.read(protocols.find("digits"))
    rows = {row.name for row in protocol.rows}
    included = {card.name for card in model_cards() if isinstance(card.weights, AssetFile)}
    assert included == {row.model for row in protocol.rows}
    assert {path.name for path in (tmp_path / "out/cells").iterdir()} == rows
    found = list(csv.DictReader((tmp_path / "out/table.csv").open()))
    assert len(found) == 18 and all(float(row["accuracy"]) >= 0.6 for row in found)


TASKS = """
title = "two tasks"

[[columns]]
name = "two"
data = "photos"
base = "0-4"
tasks = "5"
per_class = 2

[[rows]]
name = "added"
model = "digits-0-4"
method = "embedding"
steps = 1

[[rows]]
name = "trained"
tokenizer = "digits-vqvae"
base_depth = 1
base_steps = 1
steps = 1
"""


def test_classes_come_task_by_task(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("avarc_cli.incremental.examples.MIN_EXAMPLES", 4)
    monkeypatch.setattr("avarc_cli.incremental.examples.DEFAULT_VARIANTS", 1)
    monkeypatch.setattr("avarc_cli.incremental.offsets.SAMPLED", 2)
    for digit in range(7):  # two of each of six classes are used
        images = sorted((INCLUDED["digits"] / str(digit)).iterdir())
        for part, chosen in (("train", images[:3]), ("test", images[3:6])):
            (tmp_path / "photos" / part / str(digit)).mkdir(parents=True)
            for image in chosen:
                shutil.copy(image, tmp_path / "photos" / part / str(digit))
    (tmp_path / "tasks.toml").write_text(TASKS)
    words = ["--json", "evaluate", str(tmp_path / "tasks.toml"), "--out", str(tmp_path / "out")]
    words += ["--data", str(tmp_path)]
    assert main(words) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [cell["row"] for cell in cells] == ["added", "trained"]
    saved = json.loads((tmp_path / "out/cells/added/two/incremental.json").read_text())["with_offset"]
    assert cells[0]["accuracy"] == saved["average_accuracy"] and cells[0]["tasks"] == saved["matrix"][-1]
    assert cells[0]["images"] == 12
    for old, new in (("method", 'precision = "bf16"\nmethod'), ("per_class", "sample = 18\nper_class")):
        (tmp_path / "tasks.toml").write_text(TASKS.replace(old, new))
        assert main(words) == 3
        assert "holds another run" in json.loads(capsys.readouterr().out)["cells"][0]["not_run"]
