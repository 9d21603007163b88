"""--plan as the reference's three lists: candidates kept / samples / scales."""

import json

import pytest

from avarc_cli.cli import main

LISTS = "5,2,1 / 1,1,2 / 2,4,4"  # of the digits model, which has 5 scales and 10 classes
SAME = "2:5,4:2,4:1:2"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Six digits with one neighbour each."""
    from avarc_cli.zoo.local_files import ASSETS

    out = tmp_path_factory.mktemp("cache") / "t.h5"
    assert main(["encode", str(ASSETS / "digits/test"), "--limit", "6", "--samples", "2", "--out", str(out)]) == 0
    return out


def test_lists_are_translated_and_are_the_same_request(cache, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["classify", str(cache), "--plan", LISTS, "--out", str(run)]) == 0
    assert f"plan {SAME}\n" in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["plan"] == SAME
    assert main(["classify", str(cache), "--plan", SAME, "--out", str(run)]) == 0  # continues it: no other request


def test_every_plan_may_be_written_as_lists(cache, tmp_path, capsys):
    assert main(["explain", str(cache), "--plan", LISTS, "--limit", "1", "--out", str(tmp_path / "e.png")]) == 0
    assert f"plan {SAME}\n" in capsys.readouterr().err
    assert main(["bench", "--plan", "5,1 / 1,1 / 9,9,9"]) == 2
    assert "10,3,1 / 1,1,3 / 6,10,10" in capsys.readouterr().err


def test_the_paper_s_lists_are_its_plan():
    from avarc_cli.scoring.plan import parse_plan

    have = {"segments": 10, "candidates": 100, "samples": 3}
    assert parse_plan("[10, 3, 1] / [1, 1, 3] / [6, 10, 10]", **have) == parse_plan("paper", **have)


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ("10,3,1 / 1,1,3", "there are 2 lists, not 3"),
        ("10,3,1 / 1,1 / 6,10,10", "the lists have 3, 2 and 3 numbers"),
        ("10,3,x / 1,1,3 / 6,10,10", "'10,3,x' is not a list of whole numbers"),
        ("10,3,1 / 1,,3 / 6,10,10", "'1,,3' is not a list of whole numbers"),
        ("10,0,1 / 1,1,3 / 6,10,10", "a number is 0"),
        ("3,10,1 / 1,1,3 / 6,10,10", "the candidates do not decrease to 1"),
        ("10,3,2 / 1,1,3 / 6,10,10", "the candidates do not decrease to 1"),
        ("10,3,1 / 3,1,1 / 6,10,10", "the samples decrease"),
        ("10,3,1 / 1,1,3 / 10,6,10", "the scales decrease"),
    ],
)
def test_a_message_shows_the_right_form(tmp_path, capsys, lists, says):
    assert main(["classify", str(tmp_path), "--plan", lists]) == 2
    shown = capsys.readouterr().err
    assert says in shown and "10,3,1 / 1,1,3 / 6,10,10" in shown
