"""avarc compare on runs that are written by hand, so that every number can be checked on paper."""

import json
import shutil

import pytest
from handmade_run import Line, write_run
from programs import run as run_program
from small_datasets import fill

from avarc_cli.cli import main
from avarc_cli.results import made_here

CATS = ("cat", "dog", "owl")
TRUTH = ["cat"] * 4 + ["dog"] * 4 + ["owl"] * 2


def lines(said, labels=TRUTH, **options):
    """Images 0.png, 1.png, ... with these predictions."""
    return [Line(f"{i}.png", name, label, **options) for i, (name, label) in enumerate(zip(said, labels, strict=True))]


@pytest.fixture
def first(tmp_path):
    """Right about all but the last cat."""
    return write_run(tmp_path / "first", lines([*TRUTH[:3], "dog", *TRUTH[4:]]), classes=CATS)


def compared(capsys, *words):
    assert main(["compare", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_accuracy_difference_and_test_are_those_computed_by_hand(first, tmp_path, capsys):
    said = ["dog", "dog", "cat", "cat", *TRUTH[4:9], "cat"]  # wrong about two cats and an owl, right about the last cat
    second = write_run(tmp_path / "second", lines(said, tokens=4), classes=CATS, seconds=0.1)
    found = compared(capsys, first, second)
    assert [run["accuracy"] for run in found["runs"]] == [0.9, 0.7]
    assert [run["tokens_per_image"] for run in found["runs"]] == [16, 4]
    assert [run["seconds_per_image"] for run in found["runs"]] == [0.5, 0.1]
    (other,) = found["against_first"]
    assert other["pairs"] == {"both": 6, "only_first": 3, "only_second": 1, "neither": 0}
    assert other["agreement"] == 0.6 and other["different"] == 4
    assert other["difference"] == pytest.approx(-0.2)
    assert other["mcnemar"] == {"p": 0.625, "test": "exact binomial"}  # 2 * (1 + 4) / 16
    low, high = other["difference_95"]
    assert low < -0.2 < high
    assert found["per_class"][0] == {"name": "owl", "images": 2, "accuracy": [1.0, 0.5]}
    assert found["per_class"][1] == {"name": "cat", "images": 4, "accuracy": [0.75, 0.5]}
    assert found["differing"] == 4
    assert {each["path"] for each in found["differences"]} == {"0.png", "1.png", "3.png", "9.png"}


def test_the_seed_decides_the_interval(first, tmp_path, capsys):
    second = write_run(tmp_path / "second", lines(["owl", *TRUTH[1:5], *["owl"] * 5]), classes=CATS)
    words = (first, second)
    assert compared(capsys, *words, "--seed", "5") == compared(capsys, *words, "--seed", "5")


def test_classes_are_matched_by_id_and_not_by_number(first, tmp_path, capsys):
    """The same predictions of a model with another class order, whose ids are synsets: only the names are the same."""
    said = [*TRUTH[:3], "dog", *TRUTH[4:]]
    second = write_run(tmp_path / "second", lines(said), classes=("owl", "cat", "dog"), ids=("n3", "n1", "n2"))
    third = write_run(tmp_path / "third", lines(said), classes=("dog", "owl", "cat"))
    found = compared(capsys, first, second, third)
    assert [each["agreement"] for each in found["against_first"]] == [1.0, 1.0]
    assert found["notes"] == []


def test_two_classes_of_one_name_are_not_confused(tmp_path, capsys):
    """ImageNet has two cranes, which only their ids tell apart."""
    said = [Line("0.png", "crane", "crane"), Line("1.png", "goldfish", "goldfish")]
    synsets = {"bird": ("n02012849", "n01443537"), "machine": ("n03126707", "n01443537")}
    runs = [write_run(tmp_path / k, said, classes=("crane", "goldfish"), ids=ids) for k, ids in synsets.items()]
    found = compared(capsys, *runs)
    assert found["images"] == 1 and found["against_first"][0]["agreement"] == 1.0
    assert found["notes"][0] == "1 image of the same path has another label"


def test_runs_over_other_images_are_compared_on_those_they_share(first, tmp_path, capsys):
    second = write_run(tmp_path / "second", [*lines(TRUTH)[2:], Line("x.png", "owl", "owl")], classes=CATS)
    found = compared(capsys, first, second)
    assert found["images"] == 8
    assert found["runs"][0]["accuracy"] == 7 / 8
    assert found["notes"] == [
        f"2 images of '{first}' are not in the other run",
        f"1 image of '{second}' is not in the other run",
    ]


def test_runs_without_a_common_image_are_refused(first, tmp_path, capsys):
    second = write_run(tmp_path / "second", [Line("a/0.png", "cat", "cat")], classes=CATS)
    assert main(["compare", str(first), str(second)]) == 2
    message = capsys.readouterr().err
    assert "no image in common" in message and "'0.png' and 'a/0.png'" in message


def test_images_of_one_name_that_have_other_tokens_are_left_out(tmp_path, capsys):
    """Both runs made their tokens in the same way; with another tokenizer, nothing follows from the digests."""
    runs = [write_run(tmp_path / name, lines(TRUTH, digest=name), classes=CATS) for name in ("a", "b")]
    assert main(["compare", *map(str, runs)]) == 2
    assert "10 images of the same path have other tokens" in capsys.readouterr().err
    mixed = [Line(f"{i}.png", n, n, digest="b" if i else "a") for i, n in enumerate(TRUTH)]
    runs.append(write_run(tmp_path / "c", mixed, classes=CATS))
    found = compared(capsys, runs[0], runs[2])
    assert found["images"] == 1 and "9 images of the same path have other tokens" in found["notes"][0]
    other = write_run(tmp_path / "d", lines(TRUTH, digest="d"), classes=CATS, tokenizer={"sha256": "2" * 64})
    assert compared(capsys, runs[0], other)["images"] == 10


def test_without_labels_there_is_agreement_only(tmp_path, capsys):
    none = [None] * 10
    first = write_run(tmp_path / "first", lines(TRUTH, none), classes=CATS)
    second = write_run(tmp_path / "second", lines(["owl", *TRUTH[1:]], none, near_tie=True), classes=CATS)
    found = compared(capsys, first, second)
    (other,) = found["against_first"]
    assert (other["agreement"], other["near_ties"], other["difference"], other["mcnemar"]) == (0.9, 1, None, None)
    assert found["counted"] == 0 and found["per_class"] == []
    assert found["differences"] == [
        {"path": "0.png", "label": None, "predictions": ["cat", "owl"], "posteriors": [0.9, 0.9], "right": [None, None]}
    ]
    assert "accuracies are not known" in found["notes"][0]
    assert main(["compare", str(first), str(second), "--out", str(tmp_path / "page.html")]) == 0
    assert "without a label" in (tmp_path / "page.html").read_text()


def test_other_candidates_are_noted_and_only_images_that_count_everywhere_count(first, tmp_path, capsys):
    second = write_run(tmp_path / "second", lines(["cat"] * 10), classes=("cat", "dog"))
    found = compared(capsys, first, second)
    assert (found["images"], found["counted"]) == (10, 8)  # the owls are no candidate
    assert found["runs"][0]["accuracy"] == 7 / 8
    assert "other classes (3, 2)" in found["notes"][1]


def test_the_surest_of_the_images_that_decide_come_first(first, tmp_path, capsys):
    said = [*TRUTH[:3], "owl", "owl", "owl", *TRUTH[6:]]  # 3.png is wrong in both
    sure = {4: 0.6, 5: 0.8}
    second = [Line(f"{i}.png", n, TRUTH[i], posterior=sure.get(i, 0.99)) for i, n in enumerate(said)]
    found = compared(capsys, first, write_run(tmp_path / "second", second, classes=CATS))
    assert [each["path"] for each in found["differences"]] == ["5.png", "4.png", "3.png"]
    found = compared(capsys, first, tmp_path / "second", "--images", "1")
    assert (len(found["differences"]), found["differing"]) == (1, 3)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_two_runs_are_refused(first, count, capsys):
    assert main(["compare", *[str(first)] * count]) == 2
    assert ("there is one run" if count == 1 else "named twice") in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_refused(first, tmp_path, capsys):
    shutil.copytree(first, tmp_path / "second")
    (tmp_path / "second" / "predictions.jsonl").unlink()
    assert main(["compare", str(first), str(tmp_path / "second")]) == 2
    assert "not finished" in capsys.readouterr().err


def test_tables_fit_80_columns(first, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = tmp_path / "second"
    write_run(name, lines(["owl"] * 10), classes=CATS)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "first", "second"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "1  first" in shown and "exact binomial" in shown and "Images on which they differ" in shown


def test_the_bare_result_is_one_line_for_each_other_run(first, tmp_path, capsys):
    second = write_run(tmp_path / "second", lines(["owl"] * 10), classes=CATS)
    assert main(["-q", "compare", str(first), str(second)]) == 0
    assert capsys.readouterr().out == f"{second}\t-0.700000\t0.200000\n"


@pytest.fixture
def pictured(tmp_path):
    """Two runs over three images that exist."""
    source = fill(tmp_path / "img", "0.png", "1.png", "2.png")
    said = [["cat", "dog", "owl"], ["dog", "owl", "<b>"]]
    classes = (*CATS, "<b>")
    runs = [
        write_run(
            tmp_path / f"run{i}",
            lines(names, ["cat", "dog", "owl"]),
            classes=classes,
            source=str(source),
            tokens={"source": str(source), "preprocess": "none 8", "length": 8},
        )
        for i, names in enumerate(said)
    ]
    for run in runs:
        made_here.remember(run / "run.json")
    return runs


def pictures(runs, page, *options):
    assert main(["compare", *map(str, runs), "--out", str(page), "--overwrite", *options]) == 0
    return page.read_text().count("<img ")


def test_the_page_shows_the_images_on_which_runs_differ(pictured, tmp_path):
    page = tmp_path / "page.html"
    assert pictures(pictured, page) == 3
    shown = page.read_text()
    assert "&lt;b&gt;" in shown and "<b></td>" not in shown  # a class name is no markup
    assert "http" not in shown and 'src="data:' in shown
    assert pictures(pictured, page, "--images", "1") == 1


def test_a_run_of_somebody_else_names_no_image_outside_of_its_folder(pictured, tmp_path):
    for run in pictured:
        protocol = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(protocol | {"threads": 99}))
    page = tmp_path / "page.html"
    assert pictures(pictured, page) == 0
    assert "--allow-outside" in page.read_text()
    assert pictures(pictured, page, "--allow-outside") == 3


def test_an_existing_page_is_replaced_only_with_overwrite(pictured, tmp_path):
    words = ["compare", *map(str, pictured), "--out", str(tmp_path / "page.html")]
    assert [main(words), main(words), main([*words, "--overwrite"])] == [0, 2, 0]
    assert main(["compare", *map(str, pictured), "--out", str(tmp_path / "page.pdf")]) == 2


def test_runs_are_compared_without_torch(pictured, tmp_path):
    done = run_program("avarc_modules", "compare", *pictured, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "numpy" in loaded and "torch" not in loaded
